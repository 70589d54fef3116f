"""Finds the tests whose names carry the numbers of the statements they prove, by reading the source without imports.

    numbered_tests("c")[41]  # test_c41_c42_an_unknown_action_…: statement 41 of the protocol, and 42
    numbered_tests("m")[5]   # test_m05_…: scenario 5 of the migrations

All numbers of a test come first in its name, and are of one letter.
"""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["TESTS", "NumberedTest", "numbered_tests", "parsed"]

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class NumberedTest:
    """One test function under one of its numbers."""

    number: int
    name: str
    file: str
    """Below `tests/`, with slashes: `interop/test_calls.py`."""
    function: ast.FunctionDef | ast.AsyncFunctionDef = field(compare=False, repr=False)


@functools.cache
def numbered_tests(letter: Literal["c", "m"], folder: Path = TESTS) -> dict[int, list[NumberedTest]]:
    """The tests by number, in the order of files and lines; a test with several numbers is listed under each."""
    found: dict[int, list[NumberedTest]] = defaultdict(list)
    for file in sorted(folder.rglob("test_*.py")):
        if "node_modules" not in file.parts:
            for test in _in_file(file, letter, folder):
                found[test.number].append(test)
    return dict(sorted(found.items()))


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _in_file(file: Path, letter: str, folder: Path) -> Iterator[NumberedTest]:
    numbers = re.compile(rf"test_((?:{letter}\d+_)+)")
    for node in parsed(file).body if numbers.search(file.read_text(encoding="utf-8")) else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            match = numbers.match(node.name)
            for number in re.findall(r"\d+", match[1]) if match else ():
                yield NumberedTest(int(number), node.name, file.relative_to(folder).as_posix(), node)
