"""Finds the versions of Moleculer JS that a test runs with by reading its source, so that no table has to be kept.

A test runs with JS nodes if it, one of its fixtures, or a function that these call, starts one with `js_node`. The
versions are those in the parameters of the test and its fixtures (`params=VERSIONS`), or in the call of `js_node`
itself; a comparison inside a test (`if version == "0.14"`) does not count.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.js_node import VERSIONS
from tests.support.numbered import parsed
from tests.support.processes import REPOSITORY

__all__ = ["versions_beside"]

_STARTER = "js_node"
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class _Module:
    """What the names in one file refer to."""

    defined: dict[str, ast.AST]
    imported: dict[str, Path]


@dataclass(frozen=True)
class _Thing:
    """A function or a constant, and the file that contains it."""

    node: ast.AST
    file: Path


@functools.cache
def versions_beside(function: _Function, file: Path) -> frozenset[str]:
    """The versions of the JS nodes that run while the test does: none, one, or both."""
    things = list(_reached(function, file))
    starts = [call for thing in things for call in _starts(thing.node)]
    if not starts:
        return frozenset()
    named = [text for call in starts for text in _versions(call.args[0])]
    return frozenset([*named, *(text for thing in things for text in _versions_of_parameters(thing))])


def _reached(function: _Function, file: Path) -> Iterator[_Thing]:
    """The test, its fixtures, and everything they use, in their files and in those they import from."""
    waiting, known = [_Thing(function, file)], set[ast.AST]()
    while waiting:
        thing = waiting.pop()
        if thing.node not in known:
            known.add(thing.node)
            yield thing
            waiting.extend(_used(thing))


@functools.cache
def _used(thing: _Thing) -> list[_Thing]:
    inner = list(ast.walk(thing.node))
    names = {node.id for node in inner if isinstance(node, ast.Name)}
    fixtures = {node.arg for node in inner if isinstance(node, ast.arg)} - _parametrized(thing.node)
    used = []
    for name in (names | fixtures) - {_STARTER}:
        conftests = [folder / "conftest.py" for folder in thing.file.parents] if name in fixtures else []
        used.append(next((found for place in (thing.file, *conftests) if (found := _look_up(name, place))), None))
    return [found for found in used if found]


def _parametrized(node: ast.AST) -> set[str]:
    """Names whose values come from `@pytest.mark.parametrize` rather than from a fixture."""
    decorators = node.decorator_list if isinstance(node, _Function) else []
    first = [decorator.args[0] for decorator in decorators if isinstance(decorator, ast.Call) and decorator.args]
    return {str(inner.value) for one in first for inner in ast.walk(one) if isinstance(inner, ast.Constant)}


def _look_up(name: str, file: Path) -> _Thing | None:
    module = _read(file)
    if name in module.defined:
        return _Thing(module.defined[name], file)
    return _look_up(name, module.imported[name]) if name in module.imported else None


@functools.cache
def _read(file: Path) -> _Module:
    defined: dict[str, ast.AST] = {}
    imported: dict[str, Path] = {}
    for node in parsed(file).body if file.exists() else ():
        if isinstance(node, _Function):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            path = REPOSITORY.joinpath(*str(node.module).split(".")).with_suffix(".py")
            imported |= {alias.name: path for alias in node.names}
    return _Module(defined, imported)


@functools.cache
def _starts(node: ast.AST) -> list[ast.Call]:
    calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == _STARTER]


def _versions_of_parameters(thing: _Thing) -> Iterator[str]:
    """Those in `@pytest.fixture(params=…)` and `@pytest.mark.parametrize(…)`, constants followed."""
    for decorator in thing.node.decorator_list if isinstance(thing.node, _Function) else ():
        yield from _versions(decorator)
        for name in [node.id for node in ast.walk(decorator) if isinstance(node, ast.Name)]:
            if constant := _look_up(name, thing.file):
                yield from _versions(constant.node)


def _versions(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id == "VERSIONS":
            yield from VERSIONS
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield from (version for version in VERSIONS if re.match(rf"{re.escape(version)}\b", inner.value))
