"""Every serializer, compressed and encrypted too, between a Python node and JS nodes of both versions (§11, §13)."""

import contextlib
import hashlib
import json
import random
import sqlite3
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import Compression, Context, Encryption, MoleculerClientError, Service, ServiceBroker, action, event
from services.environments_store.service import EnvironmentsStore
from tests.interop.services import python_services
from tests.support.js_node import JsError, JsNode, js_node

pytestmark = pytest.mark.anyio

KEY, IV = "12345678901234567890123456789012", "1234567890123456"
WIRE: dict[str, tuple[list[Any], list[Any]]] = {
    "": ([], []),
    "encrypted after compression": (
        [["Encryption", KEY, "aes-256-cbc", IV], ["Compression", {"method": "deflate"}]],
        [Encryption(KEY, iv=IV), Compression("deflate")],
    ),
    "gzip": ([["Compression", {"method": "gzip", "threshold": None}]], [Compression("gzip", None)]),
    "deflateRaw and ecb": (
        [["Compression", {"method": "deflateRaw", "threshold": 100}], ["Encryption", KEY, "aes-256-ecb"]],
        [Compression("deflateRaw", 100), Encryption(KEY, "aes-256-ecb")],
    ),
}
"""The middlewares of every packet, as JS options and as ours."""

SETUPS = [
    *(("0.15", serializer, "") for serializer in ("JSONExt", "MsgPack", "CBOR")),
    *(("0.14", serializer, "") for serializer in ("Notepack", "CBOR")),
    ("0.15", "JSON", "encrypted after compression"),
    ("0.14", "MsgPack", "encrypted after compression"),
    ("0.14", "JSON", "gzip"),
    ("0.15", "JSONExt", "deflateRaw and ecb"),
    *(pytest.param(one, marks=pytest.mark.long) for one in (("0.15", "JSON", ""), ("0.14", "MsgPack", ""))),
]
"""Of the last two, each is in the short form with something around it, and in that of many other tests without."""

JS = """
const { Readable } = process.getBuiltinModule("node:stream");
const { createHash } = process.getBuiltinModule("node:crypto");
const streamOf = ctx => ctx.stream || ctx.params;
const show = v => v === undefined ? "undefined" : v === null ? "null" : typeof v === "bigint" ? `BigInt ${v}`
    : Buffer.isBuffer(v) ? `Buffer ${v.toString("hex")}` : v instanceof Date ? `Date ${v.valueOf()}`
    : v instanceof Set ? `Set ${JSON.stringify([...v])}` : v instanceof RegExp ? `RegExp ${v}`
    : v instanceof Map ? `Map ${JSON.stringify([...v])}` : `${typeof v} ${JSON.stringify(v)}`;
const values = {
    date: new Date(1700000000123), old: new Date(-1500), bytes: Buffer.from([0, 1, 255]), nothing: null,
    missing: undefined, big: 2 ** 40, negative: -(2 ** 40), fraction: 1.5, third: 1 / 3, text: "[[DT]]5",
    brackets: "[[hi", deep: [[{ date: new Date(5) }]],
};
const rich = { set: new Set([1, "[[x"]), map: new Map([["a", new Date(7)]]), regexp: /a|b/gi, bigint: 2n ** 60n };
const shown = value => Object.fromEntries(Object.entries(value).map(([name, item]) => [name, show(item)]));
broker.createService({ name: "jstypes",
    actions: {
        make: () => values,
        rich: () => rich,
        describe(ctx) {
            const seen = { params: shown(ctx.params), meta: shown(ctx.meta) };
            ctx.meta.back = values.date;
            return seen;
         },
        askPython: ctx => ctx.call("pytypes.describe", values, { meta: { when: values.date } }),
        askPythonRich: ctx => ctx.call("pytypes.describe", rich),
        async echoes(ctx) {
            return shown(await ctx.call("pyecho.params", { ...values, ...(ctx.params.rich ? rich : {}) }));
        },
        typed: ctx => ctx.call("pytypes.typed", { when: values.date, data: values.bytes, stamp: values.big, count: 3,
            document: { a: ["[[DT]]5", 1.5, null, 2 ** 40], when: values.date } }),
        async digest(ctx) {
            const hash = createHash("sha256"); let size = 0;
            for await (const chunk of streamOf(ctx)) { hash.update(chunk); size += chunk.length; }
            return { digest: hash.digest("hex"), size };
        },
        async values(ctx) {
            const seen = [];
            for await (const value of streamOf(ctx)) seen.push(shown(value));
            return seen;
        },
        bytes: () => Readable.from(function* () { for (let i = 0; i < 5; i++) yield Buffer.alloc(70000, 250 + i); }(),
            { objectMode: false }),
        objects: () => Readable.from([{ ...values, n: 1 }, { text: "[[x", n: 2 }]),
        throwRich() { throw Object.assign(new Error("rich"),
            { name: "MoleculerClientError", code: 418, type: "RICH", data: { at: values.date, t: "[[" } }); },
        async stream(ctx) {
            const answer = await ctx.call("pytypes.stream", { objects: ctx.params.objects });
            const hash = createHash("sha256"); const seen = [];
            for await (const chunk of answer) ctx.params.objects ? seen.push(shown(chunk)) : hash.update(chunk);
            return { seen, digest: hash.digest("hex") };
        },
        async sendStream(ctx) {
            const chunks = ctx.params.objects
                ? [values, { text: "[[x" }] : [Buffer.alloc(150000, 200), Buffer.from("[[")];
            const source = Readable.from(chunks, { objectMode: Boolean(ctx.params.objects) });
            const name = ctx.params.objects ? "pytypes.collect" : "pytypes.digest";
            return VERSION === "0.14" ? ctx.call(name, source) : ctx.call(name, {}, { stream: source });
        },
    },
    events: { "types.sent": { handler(ctx) { broker.received = shown(ctx.params); } } },
});
await broker.waitForServices("jstypes", 10000, 20);
"""

MOMENT = datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)
OLD = datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)


def show(value: Any) -> str:
    return f"{type(value).__name__} {sorted(map(str, value)) if isinstance(value, set) else value!r}"


@dataclass
class Types(Service):
    """Describes what arrived, and makes values of every kind."""

    name = "pytypes"
    received: dict[str, Any] = field(default_factory=dict)

    @action
    async def describe(self, ctx: Context) -> dict[str, Any]:
        return {name: show(value) for name, value in {**ctx.params, **ctx.meta}.items()}

    @action
    async def typed(
        self, ctx: Context, when: datetime, stamp: int, count: int, document: msgspec.Raw, data: Any = None
    ) -> list[str]:
        return [show(when.astimezone(UTC)), show(stamp), show(count), bytes(document).decode()]

    @action
    async def stream(self, ctx: Context, objects: bool = False) -> AsyncIterator[Any]:
        for number in range(3):
            if objects:
                yield {"n": number, "when": MOMENT, "text": "[[DT]]5", "big": 2**40}
            else:
                yield bytes([number + 250]) * 100_000

    @action
    async def digest(self, ctx: Context) -> dict[str, Any]:
        data = await ctx.stream.read()
        return {"digest": hashlib.sha256(data).hexdigest(), "size": len(data)}

    @action
    async def collect(self, ctx: Context) -> list[dict[str, str]]:
        return [{name: show(item) for name, item in value.items()} async for value in ctx.stream]

    @action
    async def fail(self, ctx: Context) -> None:
        raise MoleculerClientError("rich", 418, "RICH", {"at": MOMENT, "text": "[["})

    @event("types.asked")
    async def on_asked(self, ctx: Context) -> None:
        self.received = {name: show(value) for name, value in ctx.params.items()}
        await ctx.broadcast("types.answered", {"done": True})


@dataclass(frozen=True)
class Cluster:
    """One JS node and one Python node, which also holds the store."""

    version: str
    serializer: str
    js: JsNode
    broker: ServiceBroker
    types: Types
    database: Path

    async def ask(self, action: str, params: Any = None) -> Any:
        """The answer of an action of the JS node, called there."""
        return await self.js.call(action, {} if params is None else params)


@pytest.fixture(scope="module", params=SETUPS, ids=" ".join)
async def cluster(
    request: pytest.FixtureRequest, nats_url: str, js_modules: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    version, serializer, around = request.param
    in_js, here = WIRE[around]
    namespace, types = f"wire-{uuid.uuid4().hex[:12]}", Types()
    database = tmp_path_factory.mktemp("store") / "store.sqlite"
    options = {"serializer": serializer, "middlewares": in_js}
    async with contextlib.AsyncExitStack() as stack:
        js = await stack.enter_async_context(js_node(version, nats_url, namespace, "js", **options))
        broker = await stack.enter_async_context(
            ServiceBroker(
                "py",
                namespace=namespace,
                transporter=nats_url,
                protocol={"0.14": "4", "0.15": "5"}[version],  # the other version would leave a line in the log of JS
                serializer=serializer,
                transforms=here,
                services=[*python_services(), types, EnvironmentsStore(f"sqlite:///{database}")],
            )
        )
        await js.create_service("echo")
        await js.create_service("errors")
        await js.run(f"const VERSION = {json.dumps(version)};\n{JS}")
        await js.wait_for_services("pytypes", "pyecho", "environments-store")
        await broker.wait_for_services("jstypes", "echo", "errors", timeout=30)
        yield Cluster(version, serializer, js, broker, types, database)
        assert js.logged() == []


PLAIN = {
    "a": [1, {"b": None}],
    "t": "é😀",
    "n": -1,
    "big": 2**53 - 1,
    "f": 0.1,
    "yes": True,
    "e": {},
    "l": [],
    "m": "[[ES]]",
}


@pytest.mark.parametrize("value", [PLAIN, None, 0, "", "[[hi", [], [["[["]]], ids=repr)
async def test_c84_plain_values_arrive_as_they_were_sent(cluster: Cluster, value: object) -> None:
    assert await cluster.broker.call("echo.params", value) == value
    assert await cluster.js.call("pyecho.params", value) == value


async def test_c84_c85_meta_and_errors_are_passed_in_both_directions(cluster: Cluster) -> None:
    meta = {"user": 7, "text": "[["}
    assert (await cluster.broker.call("echo.context", {}, meta=meta))["meta"] == meta
    assert (await cluster.js.call("pyecho.context", {}, meta=meta))["meta"] == meta
    order = {"class": "MoleculerRetryableError", "message": "[[m", "code": 503, "type": "T", "data": {"a": [1, "[["]}}
    with pytest.raises(JsError) as caught:
        await cluster.js.call("pyerrors.throw", order)
    error = caught.value
    assert (error.name, error.code, error.type, error.data) == ("MoleculerRetryableError", 503, "T", {"a": [1, "[["]})
    with pytest.raises(Exception, match=r"\[\[m") as raised:
        await cluster.broker.call("errors.throw", order)
    assert getattr(raised.value, "data", None) == {"a": [1, "[["]}


DATE_TEXT, OLD_TEXT = "2023-11-14T22:13:20.123Z", "1969-12-31T23:59:58.500Z"


def received(cluster: Cluster) -> dict[str, Any]:
    """What a Python node receives for the values of `jstypes`."""
    json_only = cluster.serializer == "JSON"
    return {
        "date": DATE_TEXT if json_only else MOMENT,
        "old": OLD_TEXT if json_only else OLD,
        "bytes": {"type": "Buffer", "data": [0, 1, 255]} if json_only else b"\x00\x01\xff",
        "nothing": None,
        **({"missing": None} if cluster.serializer == "CBOR" else {}),
        "big": 2**40,
        "negative": -(2**40),
        "fraction": 1.5,
        "third": 1 / 3,
        "text": "[[DT]]5",
        "brackets": "[[hi",
        "deep": [
            [{"date": "1970-01-01T00:00:00.005Z" if json_only else datetime(1970, 1, 1, 0, 0, 0, 5000, tzinfo=UTC)}]
        ],
    }


async def test_c83_c84_javascript_values_arrive_in_python_with_their_types(cluster: Cluster) -> None:
    wanted = received(cluster)
    assert await cluster.broker.call("jstypes.make") == wanted
    described = await cluster.ask("jstypes.askPython")
    assert described == {name: show(value) for name, value in wanted.items()} | {"when": show(wanted["date"])}


SENT = {
    "date": MOMENT,
    "old": OLD,
    "bytes": b"\x00\x01\xff",
    "big": 2**40,
    "negative": -(2**40),
    "third": 1 / 3,
    "n": None,
}


async def test_c83_c84_python_values_arrive_in_javascript_with_their_types(cluster: Cluster) -> None:
    meta: dict[str, Any] = {"when": MOMENT}
    value = {**SENT, "text": "[[DT]]5", "set": {1}, "nan": [float("nan")], "stamp": 1_795_351_433_769}
    answer = await cluster.broker.call("jstypes.describe", value, meta=meta)
    json_only = cluster.serializer == "JSON"
    date, old = (f'string "{DATE_TEXT}"', f'string "{OLD_TEXT}"') if json_only else ("Date 1700000000123", "Date -1500")
    assert answer["params"] == {
        **{"date": date, "old": old, "n": "null", "text": 'string "[[DT]]5"', "nan": "object [null]"},
        "bytes": 'object {"type":"Buffer","data":[0,1,255]}' if json_only else "Buffer 0001ff",
        **{"big": "number 1099511627776", "negative": "number -1099511627776", "third": "number 0.3333333333333333"},
        "set": "Set [1]" if cluster.serializer in ("JSONExt", "CBOR") else "object [1]",
        "stamp": "number 1795351433769",
    }
    assert answer["meta"] == {"when": date}
    assert meta["back"] == received(cluster)["date"]


async def test_c84_javascript_gets_back_the_values_it_sent(cluster: Cluster) -> None:
    json_only = cluster.serializer == "JSON"
    echoed = await cluster.ask("jstypes.echoes")
    assert echoed["date"] == (f'string "{DATE_TEXT}"' if json_only else "Date 1700000000123")
    assert echoed["bytes"] == ('object {"type":"Buffer","data":[0,1,255]}' if json_only else "Buffer 0001ff")
    assert (echoed["big"], echoed["fraction"]) == ("number 1099511627776", "number 1.5")
    assert (echoed["text"], echoed["brackets"]) == ('string "[[DT]]5"', 'string "[[hi"')


async def test_c84_sets_maps_regular_expressions_and_big_integers(cluster: Cluster) -> None:
    if cluster.serializer not in ("JSONExt", "CBOR"):
        echoed = await cluster.ask("jstypes.echoes")
        assert "set" not in echoed  # these cannot be encoded: JS nodes cannot send them either
        return
    described = await cluster.ask("jstypes.askPythonRich")
    assert described == {
        "set": "set ['1', '[[x']",
        "map": show({"a": datetime(1970, 1, 1, 0, 0, 0, 7000, tzinfo=UTC)}),
        "regexp": "RegExp RegExp(source='a|b', flags='gi')",
        "bigint": f"int {2**60}",
    }
    echoed = await cluster.ask("jstypes.echoes", {"rich": True})
    assert sorted(json.loads(echoed["set"].removeprefix("Set ")), key=str) == [1, "[[x"]
    assert (echoed["regexp"], echoed["bigint"]) == ("RegExp /a|b/gi", f"BigInt {2**60}")
    assert echoed["map"] == 'object {"a":"1970-01-01T00:00:00.007Z"}', "a dict is a plain object"


async def test_c84_typed_parameters_get_python_types_and_documents_as_json(cluster: Cluster) -> None:
    when, stamp, count, document = await cluster.ask("jstypes.typed")
    assert (when, stamp, count) == (show(MOMENT), f"int {2**40}", "int 3")
    assert document == f'{{"a":["[[DT]]5",1.5,null,1099511627776],"when":"{DATE_TEXT}"}}'


async def test_c84_error_data_keeps_its_types(cluster: Cluster) -> None:
    with pytest.raises(MoleculerClientError) as caught:
        await cluster.broker.call("jstypes.throwRich")
    assert caught.value.data == {"at": received(cluster)["date"], "t": "[["}
    code = "return await broker.call('pytypes.fail').catch(error => [error.data.at instanceof Date, error.data.text]);"
    assert await cluster.js.run(code) == [cluster.serializer != "JSON", "[["]


async def test_c84_c85_events_and_pings_work_in_both_directions(cluster: Cluster) -> None:
    await cluster.js.run(
        "broker.createService({ name: 'waiter', events: { 'types.answered': () => broker.answered() } });"
        "const answered = new Promise(resolve => { broker.answered = resolve; });"
        "await broker.waitForServices('waiter', 10000, 20);"
        "await new Promise(resolve => setTimeout(resolve, 0));"
        "broker.emitted = answered;"
    )
    await cluster.broker.wait_for_services("waiter", timeout=30)
    await cluster.js.run("broker.emit('types.asked', { text: '[[', when: new Date(5) }); await broker.emitted;")
    assert cluster.types.received["text"] == show("[[")
    assert cluster.types.received["when"].startswith("str" if cluster.serializer == "JSON" else "datetime")
    await cluster.broker.emit("types.sent", {"when": MOMENT, "text": "[["})
    # Not earlier: JS nodes decompress packets in any order.
    code = "while (!broker.received) await new Promise(r => setTimeout(r, 5)); return broker.received;"
    assert (await cluster.js.run(code))["text"] == 'string "[["'
    pong = await cluster.broker.ping("js", timeout=30)
    assert pong is not None
    assert abs(pong["timeDiff"]) < 1000
    assert 0 <= pong["elapsedTime"] < 30_000
    pong = await cluster.js.ping("py")
    assert 0 <= pong["elapsedTime"] < 30_000
    assert abs(pong["timeDiff"]) < 1000


async def test_c67_c68_c84_c85_streams_of_bytes_arrive_byte_for_byte(cluster: Cluster) -> None:
    data = random.Random(5).randbytes(700_000) + b"\xff" * 300_000
    sent = await cluster.broker.call("jstypes.digest", stream=[data, b"[["])
    assert sent == {"digest": hashlib.sha256(data + b"[[").hexdigest(), "size": len(data) + 2}
    answer = await cluster.broker.call("jstypes.bytes")
    assert await answer.read() == b"".join(bytes([250 + number]) * 70_000 for number in range(5))
    wanted = hashlib.sha256(b"".join(bytes([number + 250]) * 100_000 for number in range(3))).hexdigest()
    assert (await cluster.ask("jstypes.stream"))["digest"] == wanted
    from_js = b"\xc8" * 150_000 + b"[["
    assert await cluster.ask("jstypes.sendStream") == {"digest": hashlib.sha256(from_js).hexdigest(), "size": 150_002}


async def test_c67_c68_c84_c85_streams_of_values_keep_their_types(cluster: Cluster) -> None:
    wanted = received(cluster)
    answer = await cluster.broker.call("jstypes.objects")
    assert [value async for value in answer] == [{**wanted, "n": 1}, {"text": "[[x", "n": 2}]
    assert await cluster.ask("jstypes.sendStream", {"objects": True}) == [
        {name: show(value) for name, value in wanted.items()},
        {"text": show("[[x")},
    ]
    when = f'string "{DATE_TEXT}"' if cluster.serializer == "JSON" else "Date 1700000000123"
    shown = [
        {"n": f"number {number}", "when": when, "text": 'string "[[DT]]5"', "big": "number 1099511627776"}
        for number in range(3)
    ]
    assert (await cluster.ask("jstypes.stream", {"objects": True}))["seen"] == shown
    values = [{"when": MOMENT, "text": "[[ES]]"}, {"n": 1}]
    assert await cluster.broker.call("jstypes.values", stream=values) == [
        {"when": when, "text": 'string "[[ES]]"'},
        {"n": "number 1"},
    ]


async def test_c84_the_store_keeps_documents_as_json_stringify_prints_them(cluster: Cluster) -> None:
    stored = await cluster.js.run(
        """
        const environment = { uuid: "u-1", a: "[[DT]]5", b: "[[hi", "[[key": ["[[ES]]", '"[[', "\\\\"], n: 1.5,
            big: 2 ** 40, deep: { e: {}, list: [null, true, -0.25] }, t: "é\\u2028😀" };
        const created = await broker.call("environments-store.create", { environment });
        const got = await broker.call("environments-store.get", { uuid: "u-1" });
        const [listed] = await broker.call("environments-store.list");
        const text = JSON.stringify(environment);
        const same = [created, got, listed].map(record => JSON.stringify(record.environment) === text);
        return { same, hash: got.hash, text };
        """
    )
    assert stored["same"] == [True, True, True]
    with contextlib.closing(sqlite3.connect(cluster.database)) as database:
        rows = database.execute("SELECT environment FROM environments").fetchall()
    assert rows == [(stored["text"],)]
    local = await cluster.broker.call("environments-store.get", {"uuid": "u-1"})
    assert (local["environment"], local["hash"]) == (json.loads(stored["text"]), stored["hash"])
    assert await cluster.js.call("environments-store.permanentDelete", {"uuid": "u-1", "force": True}) == {
        "success": True
    }
