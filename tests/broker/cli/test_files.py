"""Streams from and to files."""

import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from broker.cli.files import holds_values, read_bytes, read_values, size_of, write
from broker.errors import MoleculerClientError

pytestmark = pytest.mark.anyio


async def stream(*chunks: Any) -> Any:
    for chunk in chunks:
        yield chunk


async def test_bytes_are_read_in_chunks_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 600_000)
    moved: list[int] = []
    chunks = [chunk async for chunk in read_bytes(str(file), moved.append)]
    assert b"".join(chunks) == file.read_bytes()
    assert moved == [len(chunk) for chunk in chunks]
    assert max(moved) <= 262_144
    assert size_of(str(file)) == 600_000


async def test_standard_input_is_read_as_soon_as_there_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"one\ntwo")))
    assert [chunk async for chunk in read_bytes("-", lambda _: None)] == [b"one\ntwo"]
    assert size_of("-") is None


async def test_values_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b'1\n\n{"a": [2]}')
    assert [value async for value in read_values(str(file), lambda _: None)] == [1, {"a": [2]}]


async def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1\nnothing\n")
    with pytest.raises(MoleculerClientError, match=r"Line 2 of .*file is not JSON"):
        _ = [value async for value in read_values(str(file), lambda _: None)]


async def test_bytes_are_written_as_they_are_and_values_as_lines(tmp_path: Path) -> None:
    moved: list[int] = []
    await write(stream(b"ab", bytearray(b"c")), str(tmp_path / "bytes"), moved.append)
    await write(stream({"a": 1}, [2]), str(tmp_path / "values"), moved.append)
    assert (tmp_path / "bytes").read_bytes() == b"abc"
    assert (tmp_path / "values").read_bytes() == b'{"a":1}\n[2]\n'
    assert moved == [2, 1, 8, 4]
    assert (tmp_path / "bytes").stat().st_mode & 0o777 == 0o600  # whoever else has an account reads nothing


async def test_a_file_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MoleculerClientError, match="nowhere: No such file"):
        _ = [chunk async for chunk in read_bytes(str(tmp_path / "nowhere"), lambda _: None)]
    with pytest.raises(MoleculerClientError, match="Is a directory"):
        await write(stream(b"x"), str(tmp_path), lambda _: None)


@pytest.mark.parametrize(("name", "holds"), [("a.ndjson", True), ("a.jsonl", True), ("a.json", False), ("-", False)])
def test_the_name_of_a_file_says_whether_it_holds_values(name: str, holds: bool) -> None:
    assert holds_values(name) is holds
