"""What a person types on a command line, as values."""

from typing import Any

import msgspec
import typer

from broker.context import ABSENT


def read_params(text: str | None, pairs: list[str] | None) -> Any:
    """JSON and `key=value` pairs as one value; ABSENT for neither. Raises typer.BadParameter."""
    if text is None and not pairs:
        return ABSENT
    params = read_json(text, "The parameters") if text is not None else {}
    if pairs and not isinstance(params, dict):
        raise typer.BadParameter("-p adds to an object, and the parameters given are none.")
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"-p takes key=value, not {pair!r}.")
        try:
            params[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            params[key] = value
    return params


def read_object(text: str | None, what: str) -> dict[str, Any] | None:
    """A JSON object; None for no text. Raises typer.BadParameter."""
    if text is None:
        return None
    value = read_json(text, what)
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{what} must be a JSON object.")
    return value


def read_json(text: str, what: str) -> Any:
    """Any JSON value. Raises typer.BadParameter."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{what} must be JSON: {error}") from None
