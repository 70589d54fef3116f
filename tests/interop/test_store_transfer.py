"""`export` and `import` as JS nodes of both versions use them: streams of NDJSON, completely or not at all."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker import ServiceBroker
from services.environments_store.service import EnvironmentsStore
from tests.support.js_node import JsError, JsNode
from tests.support.operations import fill
from tests.support.postgres import PostgresDatabase
from tests.support.store import Bench, open_bench

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        ("lasting_js", "nodes"),
        [
            *(("0.14", "sqlite"), ("0.15", "postgresql")),
            *(pytest.param(*one, marks=pytest.mark.long) for one in (("0.14", "postgresql"), ("0.15", "sqlite"))),
        ],
        indirect=True,
    ),
]

ROWS = 400
EXACT = b'{"b":1e+21,  "uuid":"exact","a":"\xc3\xa9 \xf0\x9f\x98\x80","a":2}'

JS = """
const { Readable } = process.getBuiltinModule("node:stream");
const exported = async params => {
    const stream = await broker.call("environments-store.export", params, { timeout: 60000 });
    const pieces = [];
    for await (const piece of stream) {
        if (!Buffer.isBuffer(piece)) throw new Error(`a piece of type ${typeof piece}`);
        pieces.push(piece);
    }
    return Buffer.concat(pieces);
};
// 0.14 passes a stream in place of the params: all options go into meta.
const imported = (stream, choice) => VERSION === "0.14"
    ? broker.call("environments-store.import", stream, { timeout: 60000, meta: choice })
    : broker.call("environments-store.import", choice, { timeout: 60000, stream });
const inPieces = (buffer, size) => Readable.from((function* () {
    for (let at = 0; at < buffer.length; at += size) yield buffer.subarray(at, at + size);
})(), { objectMode: false });
const failure = async promise => {
    try { return { answer: await promise }; }
    catch ({ name, code, type, message, data }) { return { name, code, type, message, data }; }
};
"""


@dataclass
class Nodes:
    js: JsNode
    bench: Bench

    async def run(self, code: str) -> Any:
        return await self.js.run(JS.replace("VERSION", json.dumps(self.js.version)) + code)

    async def empty(self) -> None:
        await self.bench.run("DELETE FROM environments")

    async def ids(self) -> list[str]:
        return [row["id"] for row in await self.bench.database.fetch("SELECT id FROM environments ORDER BY id")]


@pytest.fixture
async def nodes(
    request: pytest.FixtureRequest, resident: JsNode, nats_url: str, tmp_path: Path
) -> AsyncIterator[Nodes]:
    """A JS node, and a node of the service with the table it serves."""
    dialect, js, namespace = request.param, resident, resident.namespace
    url = f"sqlite:///{tmp_path / 'environments.sqlite'}"
    if dialect == "postgresql":
        database: PostgresDatabase = request.getfixturevalue("postgres_database")
        url = database.url
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(open_bench(dialect, url))
        store = ServiceBroker("store", namespace=namespace, transporter=nats_url, services=[EnvironmentsStore(url)])
        mark = js.mark()
        await stack.enter_async_context(store)
        await js.local_event("$node.connected", after=mark)
        await js.wait_for_services("environments-store")
        yield Nodes(js, bench)


async def test_a_js_node_exports_everything_and_imports_it_again_byte_for_byte(nodes: Nodes) -> None:
    await fill(nodes.bench, ROWS)
    await fill(nodes.bench, 3, deleted_days=1, prefix="gone-")
    await nodes.bench.store.create(EXACT)
    await nodes.bench.store.create(json.dumps({"uuid": "large", "body": "é" * 100_000}, ensure_ascii=False).encode())
    taken = await nodes.run(
        "globalThis.live = await exported({}); globalThis.trash = await exported({ deleted: true });"
        "return { live: live.toString(), trash: trash.toString() };"
    )
    live, trash = (taken[name].splitlines() for name in ("live", "trash"))
    assert (len(live), len(trash)) == (ROWS + 2, 3)
    assert EXACT.decode() in taken["live"]
    assert all(json.loads(line)["deletedAt"] for line in trash)

    await nodes.empty()
    answers = await nodes.run(
        "return [await imported(inPieces(live, 10007), { onConflict: 'fail' }),"
        " await imported(inPieces(trash, 99), {}),"
        " await imported(inPieces(live, 65536), {}), await imported(inPieces(trash, 65536), { onConflict: 'replace' }),"
        " await failure(imported(inPieces(live, 65536), { onConflict: 'fail' })),"
        " await failure(imported(inPieces(live, 65536), { onConflict: 'overwrite' }))];"
    )
    assert answers[:4] == [
        {"created": ROWS + 2, "skipped": 0, "replaced": 0},
        {"created": 3, "skipped": 0, "replaced": 0},
        {"created": 0, "skipped": ROWS + 2, "replaced": 0},
        {"created": 0, "skipped": 0, "replaced": 3},
    ]
    assert (answers[4]["type"], answers[4]["data"]["line"]) == ("IMPORT_REFUSED", 1)
    assert (answers[5]["name"], answers[5]["code"], answers[5]["data"][0]["field"]) == (
        *("ValidationError", 422),
        "onConflict",
    )
    again = await nodes.run(
        "return [(await exported({})).equals(live), (await exported({deleted: true})).equals(trash)];"
    )
    assert again == [True, True]


async def test_a_js_node_learns_which_line_is_invalid_and_why_and_imports_it_corrected(nodes: Nodes) -> None:
    good = [json.dumps({"environment": {"uuid": f"U{number}"}}) for number in range(1, ROWS)]
    bad = [*good[:300], '{"environment": {"uuid": "broken"', *good[300:]]
    send = "imported(inPieces(Buffer.from(lines.join('\\n')), 1000), {});"
    answer = await nodes.run(f"const lines = {json.dumps(bad)}; return failure({send[:-1]});")
    assert (answer["name"], answer["code"], answer["type"]) == ("MoleculerClientError", 422, "IMPORT_REFUSED")
    assert answer["data"]["line"] == 301
    assert answer["message"] == f"Line 301: {answer['data']['reason']}. Nothing was imported."
    assert await nodes.ids() == []
    repaired = json.dumps([*good[:300], '{"environment": {"uuid": "repaired"}}', *good[300:]])
    again = f"const lines = {repaired}; return {send}"
    assert await nodes.run(again) == {"created": ROWS, "skipped": 0, "replaced": 0}
    assert await nodes.run(again) == {"created": 0, "skipped": ROWS, "replaced": 0}
    assert len(await nodes.ids()) == ROWS


async def test_an_interrupted_js_stream_imports_nothing_and_one_of_objects_is_imported(nodes: Nodes) -> None:
    broken = """
    const source = Readable.from((async function* () {
        yield Buffer.from('{"environment":{"uuid":"a"}}\\n'); throw new Error("the disk was pulled out");
    })(), { objectMode: false });
    return failure(imported(source, {}));
    """
    answer = await nodes.run(broken)
    assert "pulled out" in answer["message"]
    assert await nodes.ids() == []
    records = "return imported(Readable.from([1, 2].map(n => ({ environment: { uuid: `U${n}`, n } }))), {});"
    assert await nodes.run(records) == {"created": 2, "skipped": 0, "replaced": 0}
    assert await nodes.ids() == ["U1", "U2"]
    with pytest.raises(JsError) as caught:
        await nodes.js.call("environments-store.import", {}, timeout=60_000)
    assert "stream of lines" in caught.value.data[0]["message"]
