"""What a person types on a command line, as values. `@FILE` stands for the content of a file, `@-` for standard input.

Raises typer.BadParameter for what cannot be read.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec
import typer

from broker.context import ABSENT

_STANDARD_INPUT = ("-", "@-")


def read_params(documents: list[str] | None, pairs: list[str] | None) -> Any:
    """A JSON document and `key=value` pairs as one value; ABSENT for neither."""
    if not documents and not pairs:
        return ABSENT
    text, *more = documents or ["{}"]
    hint = _as_pairs([text, *more])
    if more:
        raise typer.BadParameter(f"One JSON document is expected, not {len(more) + 1}.{hint}")
    params = read_json(text, "The parameters", hint)
    if pairs and not isinstance(params, dict):
        raise typer.BadParameter("-p adds to an object, and the parameters given are not an object.")
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"-p takes key=value, not {pair!r}.")
        params[key] = _read_value(value, key)
    return params


def read_object(text: str | None, what: str) -> dict[str, Any] | None:
    """A JSON object; None for no text."""
    if text is None:
        return None
    value = read_json(text, what)
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{what} must be a JSON object.")
    return value


def read_json(text: str, what: str, hint: str = "") -> Any:
    """Any JSON value, `-` for that of standard input. The hint goes into the error."""
    from_file = text.startswith("@") or text == "-"
    try:
        return msgspec.json.decode(_contents(text.removeprefix("@")) if from_file else text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = f" ({_named(text)})" if from_file else ""
        raise typer.BadParameter(f"{what}{place} must be JSON: {error}.{hint}") from None


def check_input_is_read_once(pairs: list[str] | None, *texts: str | None) -> None:
    """Refuse a command line that reads standard input for two of its parts."""
    read = [text for text in texts if text in _STANDARD_INPUT] + [pair for pair in pairs or () if pair.endswith("=@-")]
    if len(read) > 1:
        raise typer.BadParameter("Standard input can be read once: name a file for the others.")


def _as_pairs(texts: list[str]) -> str:
    """The suggestion for `key=value` without `-p`."""
    pairs = [f"-p {shlex.quote(text)}" for text in texts if re.match(r"[\w.$-]+=", text)]
    return f" Did you mean {' '.join(pairs)}?" if pairs else ""


def _read_value(text: str, key: str) -> Any:
    """JSON or else text, as it was typed or as a file holds it."""
    data = _contents(text[1:]) if text.startswith("@") else text.encode(errors="surrogateescape")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise typer.BadParameter(
            f"{_named(text)} for {key!r} holds neither JSON nor text. Send bytes with --stream-in."
        ) from None


def _contents(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{name or '@'}: {error.strerror or error}") from None


def _named(text: str) -> str:
    return "standard input" if text in _STANDARD_INPUT else text.removeprefix("@")
