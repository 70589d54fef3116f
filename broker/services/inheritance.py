"""What a service class inherits: attributes and event handlers merged along its bases, as Moleculer merges mixins.

Python alone would let `settings` of a class hide those of its bases altogether.
"""

from collections.abc import Iterable, Mapping
from typing import Any

DECLARED = "_declared"
"""Where a class keeps what it declared itself, before it was merged."""

_KINDS_OUTERMOST_LAST = ("after", "error")


def merge_declared(cls: type) -> None:
    """Replace what a class declares by what it and its bases declare together; the class itself wins.

    `settings` and `metadata` are merged to any depth, `$secureSettings` and `dependencies` are joined, and of `hooks`
    all run: those of the bases first before an action, and last after it (protocol §12.1).
    """
    own = {name: vars(cls)[name] for name in _MERGE if name in vars(cls)}
    setattr(cls, DECLARED, own)
    for name, merge in _MERGE.items():
        values = [declared[name] for declared in map(_declared, reversed(cls.__mro__)) if name in declared]
        if values and all(_can_be_merged(name, value) for value in values):
            merged = values[0]
            for value in values[1:]:
                merged = merge(merged, value)
            setattr(cls, name, merged)


def _can_be_merged(name: str, value: Any) -> bool:
    """Not a property of the user's own, nor what is refused when the service is added."""
    return isinstance(value, Iterable if name == "dependencies" else Mapping) and not hasattr(value, "__get__")


def _declared(cls: type) -> Mapping[str, Any]:
    """A mixin need not be a service: what it declares counts all the same."""
    return vars(cls).get(DECLARED) or vars(cls)


def _merge_deep(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        if key == "$secureSettings" and isinstance(merged.get(key), list) and isinstance(value, list):
            merged[key] = list(dict.fromkeys([*merged[key], *value]))  # a mixin's secret stays one
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge_deep(merged[key], value)
        else:
            merged[key] = value
    return merged


def _join(base: Any, own: Any) -> tuple[Any, ...]:
    joined = list(_entries(base))
    joined += [entry for entry in _entries(own) if entry not in joined]
    return tuple(joined)


def _entries(dependencies: Any) -> Iterable[Any]:
    """One name alone is a list of one, as in Moleculer."""
    return (dependencies,) if isinstance(dependencies, str | Mapping) else dependencies


def _merge_hooks(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {kind: dict(hooks) for kind, hooks in base.items()}
    for kind, hooks in own.items():
        patterns = merged.setdefault(kind, {})
        for pattern, value in hooks.items():
            outer, inner = _as_list(patterns.get(pattern, [])), _as_list(value)
            patterns[pattern] = [*inner, *outer] if kind in _KINDS_OUTERMOST_LAST else [*outer, *inner]
    return merged


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


_MERGE = {"settings": _merge_deep, "metadata": _merge_deep, "dependencies": _join, "hooks": _merge_hooks}
