"""Each benchmark runs, at a size that takes a moment. No figure is held to anything: machines differ."""

import dataclasses
import re
from pathlib import Path

import anyio
import pytest

from tests.benchmarks import (
    calls,
    dead_nodes,
    events,
    listing,
    outages,
    profile_calls,
    store,
    store_at_size,
    streams,
    transfer,
)
from tests.support.nats_server import NatsServer
from tests.support.postgres import PostgresDatabase

DIALECTS = ["SQLite", "PostgreSQL"]


def url_of(dialect: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if dialect == "SQLite":
        return f"sqlite:///{folder / 'environments.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.mark.anyio
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_store_at_size_is_measured(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database: PostgresDatabase | None = request.getfixturevalue("postgres_database") if dialect != "SQLite" else None
    url = database.url if database else url_of(dialect, request, tmp_path)
    await store_at_size.measure(dialect, url, 500, database.log if database else None)
    shown = capsys.readouterr().out
    for figure in ("start", "page of live ones", "page of the trash", "get", "stats", "purge"):
        assert re.search(rf"^  {figure}.* \d", shown, re.MULTILINE), figure


@pytest.mark.parametrize("dialect", ["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.long)])
def test_import_and_export_are_measured(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer.measure(dialect, url_of(dialect, request, tmp_path), 50, tmp_path)
    kinds = ["import", "export"]
    if dialect == "SQLite":
        url = f"sqlite:///{tmp_path / 'actions.sqlite'}"
        anyio.run(transfer.measure_actions, url, 50, transfer.given(tmp_path, 50))
        kinds += ["import, the action", "export, the action"]
    shown = capsys.readouterr().out
    for kind in kinds:
        assert re.search(rf"^  {kind} +[\d,]+ documents/s +[\d.]+ MiB", shown, re.MULTILINE), kind


@pytest.mark.anyio
async def test_calls_are_measured(nats_url: str) -> None:
    async with (
        calls.python_pair("floor", "floor", nats_url, server="floor") as floor,
        calls.python_pair("ours", "ours", nats_url, server="ours") as ours,
    ):
        measured = await calls.measure([floor, ours], 10, calls=100, rounds=2)
    shown = calls.table(10, measured)
    assert re.search(r"floor +[\d,]+ ", shown)
    assert re.search(r"ours +[\d,]+ ", shown)


@pytest.mark.anyio
async def test_lists_are_measured(
    nats_url: str,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, size in {"ROUNDS": 2, "CALLS": 3, "DOCUMENTS": 5, "DOCUMENT_BYTES": 1000}.items():
        monkeypatch.setattr(listing, name, size)
    sqlite = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    await listing.compare(nats_url, {"SQLite": sqlite, "PostgreSQL": postgres_url})
    shown = capsys.readouterr().out
    assert shown.count("lists/s") == 4


@pytest.mark.anyio
@pytest.mark.long
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_actions_of_the_store_are_measured_beside_a_js_service(
    dialect: str,
    nats_url: str,
    js_modules: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "DOCUMENTS", 5)
    monkeypatch.setattr(listing, "DOCUMENT_BYTES", 1000)
    request.getfixturevalue("sequelize_modules")
    async with store.contenders(nats_url, url_of(dialect, request, tmp_path)) as found:
        shown = store.table(dialect, await store.measure(found, calls=4, rounds=1))
    contenders = ["ours", "JS", "asyncpg"] if dialect == "PostgreSQL" else ["ours", "JS"]
    for name in contenders:
        assert len(re.findall(rf"^  {name} +[\d,]+ +[\d.]+ +[\d,]+ ", shown, re.MULTILINE)) == len(store.WORK)


@pytest.mark.anyio
async def test_events_are_measured(nats_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await events.measure("Python", events.python_node, nats_url, 500)
    assert re.search(r"[\d,]+ events/s +[\d.]+ µs of CPU each +calls meanwhile", capsys.readouterr().out)


@pytest.mark.anyio
async def test_streams_are_measured(js_modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with NatsServer(tmp_path / "nats", **streams.SERVER) as server:
        await streams.measure("0.15", 1_000_000, server)
    shown = capsys.readouterr().out
    assert re.search(r"Python +[\d.]+ MB/s +[\d.]+ s of CPU +\d+ MB memory +[\d.]+ MB behind", shown)
    assert re.search(r"JS +[\d.]+ MB/s +[\d.]+ s of CPU +\d+ MB memory", shown)


@pytest.mark.anyio
async def test_dead_nodes_are_measured(
    nats_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dead_nodes, "NEW_CALLS_S", 0.0)
    await dead_nodes.measure("Python", "killed", nats_url, limit_s=30.0)
    assert re.search(r"Python +killed +[\d.]+ s +[\d.]+ s +\d+ of \d", capsys.readouterr().out)


@pytest.mark.anyio
async def test_outages_are_measured(js_modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = dataclasses.replace(outages.OUTAGES[0], seconds=0.2, end=_nothing)
    for one in await outages.measure(quick):
        assert one.failed == 0
        assert one.calls > 5
        assert re.search(r"back after +\d.* failed +0 of \d+", outages.line(one))


async def _nothing(_server: NatsServer) -> None:
    pass


@pytest.mark.anyio
async def test_a_plain_call_passes_few_functions_and_files() -> None:
    """Counts, not times: they are the same on every machine."""
    sides, _ = await profile_calls.profile(calls=1280, callers=128)
    for side in sides:
        assert side.functions <= 80
        assert len(side.ours) <= 20, side.ours
        assert side.files <= 15, side.ours
