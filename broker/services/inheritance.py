"""What a service class inherits: attributes merged along its bases, as Moleculer merges mixins. Python alone would let
`settings` of a class hide those of its bases altogether."""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

_DECLARED = "_declared"
"""Where a class keeps what it declared itself, before it was merged."""


def merge_declared(cls: type) -> None:
    """Replace what a class declares by what it and its bases declare together; the class itself wins.

    `settings` and `metadata` are merged to any depth, `$secureSettings` and `dependencies` are joined, and of `hooks`
    all run: those of the bases first before an action, and last after it (protocol §12.1).
    """
    setattr(cls, _DECLARED, {name: vars(cls)[name] for name in _MERGE if name in vars(cls)})
    bases = [vars(base).get(_DECLARED) or vars(base) for base in reversed(cls.__mro__)]  # a mixin need not be a service
    for name, merge in _MERGE.items():
        values = [declared[name] for declared in bases if name in declared]
        if values and all(_can_be_merged(name, value) for value in values):
            setattr(cls, name, reduce(merge, values))


def _can_be_merged(name: str, value: Any) -> bool:
    """Not a property of the user's own, nor what is refused when the service is added."""
    return isinstance(value, Iterable if name == "dependencies" else Mapping) and not hasattr(value, "__get__")


def _merge_deep(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        inherited = merged.get(key)
        if key == "$secureSettings" and isinstance(inherited, list) and isinstance(value, list):
            merged[key] = list(dict.fromkeys([*inherited, *value]))  # a mixin's secret stays one
        elif isinstance(value, Mapping) and isinstance(inherited, Mapping):
            merged[key] = _merge_deep(inherited, value)
        else:
            merged[key] = value
    return merged


def _join(base: Any, own: Any) -> tuple[Any, ...]:
    return (*entries(base), *(entry for entry in entries(own) if entry not in entries(base)))


def entries(dependencies: Any) -> tuple[Any, ...]:
    """One name alone is a list of one, as in Moleculer."""
    return (dependencies,) if isinstance(dependencies, str | Mapping) else tuple(dependencies)


def _merge_hooks(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {kind: dict(hooks) for kind, hooks in base.items()}
    for kind, hooks in own.items():
        patterns = merged.setdefault(kind, {})
        for pattern, value in hooks.items():
            inherited, added = _as_list(patterns.get(pattern, [])), _as_list(value)
            patterns[pattern] = [*inherited, *added] if kind == "before" else [*added, *inherited]
    return merged


def _as_list(hooks: Any) -> Iterable[Any]:
    return hooks if isinstance(hooks, list | tuple) else [hooks]


_MERGE = {"settings": _merge_deep, "metadata": _merge_deep, "dependencies": _join, "hooks": _merge_hooks}
