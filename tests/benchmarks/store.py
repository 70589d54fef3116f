"""What `get`, `list` and the writes of `environments-store` cost, beside a JS service with hand-written SQL.

    python -m tests.benchmarks.store [--calls 1000] [--rounds 5] [--json FILE]

`ours` is `environments-store serve`; `JS` a Moleculer service that asks node-postgres for the same columns by named
statements, or SQLite by `node:sqlite`, and makes no content hash. Each is a process of its own on the same database,
called by a JS node of its own over NATS. `asyncpg` runs the statements of ours alone, on a pool, in this process.
In each round all do the same work in turns, so that a busy moment of the machine hits all. Documents have 10 kB. CPU
is that of the server, in microseconds a call; rates are medians of the rounds, CPU is over all of them.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio
import asyncpg

from services.environments_store.queries.postgresql import POSTGRESQL
from tests.benchmarks.listing import document
from tests.benchmarks.measure import cpu_seconds, temporary_nats
from tests.support.js_node import JsNode, js_node
from tests.support.node import INTEROP, SEQUELIZE, install_packages
from tests.support.postgres import PostgresDatabase, PostgresServer
from tests.support.store_node import store_process

DOCUMENTS = 50
WORK = {"get": 16, "list": 4, "create": 16, "update": 16, "remove": 16}
"""What is measured, and how many calls of it are open at once. Each write has the environments of the one before."""
CALLS_PER_LIST = 20  # one has 50 documents

Round = dict[str, float]

JS_SERVICE = """
const url = %(url)s, sqlite = url.startsWith("sqlite:");
const columns = 'id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt", "deletedAt"';
const live = '"deletedAt" IS NULL';
const json = sqlite ? "$environment" : "$2::json", id = sqlite ? "$id" : "$1";
const now = sqlite ? "strftime('%%Y-%%m-%%d %%H:%%M:%%f +00:00', 'now')" : "now()";
const ms = sqlite ? "unixepoch('subsec') * 1000" : "floor(extract(epoch FROM now()) * 1000)";
const sql = {
    get: `SELECT ${columns} FROM environments WHERE id = ${id} AND ${live}`,
    list: `SELECT ${columns} FROM environments WHERE ${live} ORDER BY "createdAt", id`,
    create: `INSERT INTO environments (id, environment, "environmentUuid", "timestamp", "createdAt", "updatedAt")
        VALUES (${id}, ${json}, ${id}, ${ms}, ${now}, ${now}) RETURNING ${columns}`,
    update: `UPDATE environments SET environment = ${json}, "timestamp" = ${ms}, "updatedAt" = ${now}
        WHERE id = ${id} AND ${live} RETURNING ${columns}`,
    remove: `UPDATE environments SET "deletedAt" = ${now}, "updatedAt" = ${now}
        WHERE id = ${id} AND ${live} RETURNING id`,
};
let run;
if (sqlite) {
    const { DatabaseSync } = require("node:sqlite");
    const database = new DatabaseSync(url.slice("sqlite:///".length));
    database.exec("PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL");
    const statements = Object.fromEntries(Object.entries(sql).map(([name, text]) => [name, database.prepare(text)]));
    run = (name, id, environment) => {
        const values = { ...(id && { id }), ...(environment && { environment: JSON.stringify(environment) }) };
        const parsed = row => (row.environment ? { ...row, environment: JSON.parse(row.environment) } : row);
        return statements[name].all(values).map(parsed);
    };
} else {
    const { Pool } = require("module").createRequire(%(packages)s)("pg");
    const pool = new Pool({ connectionString: url, max: 10 });
    run = async (name, ...values) => (await pool.query({ name, text: sql[name], values })).rows;
}
const record = row => ({ ...row, timestamp: Number(row.timestamp) });
const one = rows => {
    if (rows.length === 0) throw new Error("There is no such environment.");
    return record(rows[0]);
};
const written = async (ctx, type, rows) => {
    if (rows.length === 0) throw new Error("There is no such environment.");
    await ctx.broadcast("environments.updated", { type, uuid: rows[0].id });
};
const uuid = "string", environment = "object";
broker.createService({
    name: "environments-store",
    actions: {
        get: { params: { uuid }, handler: async ctx => one(await run("get", ctx.params.uuid)) },
        list: async () => (await run("list")).map(record),
        create: { params: { environment }, async handler(ctx) {
            const rows = await run("create", ctx.params.environment.uuid, ctx.params.environment);
            await written(ctx, "created", rows);
            return one(rows);
        } },
        update: { params: { uuid, environment }, async handler(ctx) {
            const rows = await run("update", ctx.params.uuid, ctx.params.environment);
            await written(ctx, "updated", rows);
            return one(rows);
        } },
        remove: { params: { uuid }, async handler(ctx) {
            await written(ctx, "removed", await run("remove", ctx.params.uuid));
            return { success: true };
        } },
    },
});
"""

JS_CALLER = """
const { action, uuids, calls, atOnce, document } = %s;
const params = {
    get: uuid => ({ uuid }),
    list: () => undefined,
    create: uuid => ({ environment: { uuid, ...document } }),
    update: uuid => ({ uuid, environment: { uuid, ...document, port: 1 } }),
    remove: uuid => ({ uuid }),
}[action];
const took = [];
let next = 0;
const one = async () => {
    while (next < calls) {
        const given = params(uuids[next++ %% uuids.length]), began = performance.now();
        await broker.call("environments-store." + action, given);
        took.push(performance.now() - began);
    }
};
const started = performance.now();
await Promise.all(Array.from({ length: atOnce }, one));
const wall = performance.now() - started;
took.sort((a, b) => a - b);
return {
    rate: calls / wall * 1000,
    p50_ms: took[Math.floor(calls * 0.5)], p99_ms: took[Math.floor(calls * 0.99)],
};
"""


class Contender(Protocol):
    """A server that is running, and what calls it."""

    name: str

    async def make(self, action: str, uuids: Sequence[str], calls: int) -> Round: ...


@dataclass
class Served:
    """A service on a node, called by a JS node."""

    name: str
    pid: int
    caller: JsNode

    async def make(self, action: str, uuids: Sequence[str], calls: int) -> Round:
        given = {"action": action, "uuids": uuids, "calls": calls, "atOnce": WORK[action], "document": document(1)}
        before = cpu_seconds(self.pid)
        measured: Round = await self.caller.command("run", code=JS_CALLER % json.dumps(given), deadline_s=300)
        return {**measured, "cpu_us": (cpu_seconds(self.pid) - before) / calls * 1e6}


@dataclass
class Bare:
    """The statements alone."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    name: str = "asyncpg"
    text: str = field(default_factory=lambda: json.dumps(document(1)))

    async def make(self, action: str, uuids: Sequence[str], calls: int) -> Round:
        assert POSTGRESQL.soft_delete is not None
        run: Callable[[str], Awaitable[Any]] = {
            "get": lambda uuid: self.pool.fetchrow(POSTGRESQL.get, uuid),
            "list": lambda _: self.pool.fetch(POSTGRESQL.listing.first, None),
            "create": lambda uuid: self.pool.fetchrow(POSTGRESQL.create, uuid, self.text),
            "update": lambda uuid: self.pool.fetchrow(POSTGRESQL.update, uuid, self.text),
            "remove": lambda uuid: self.pool.fetchrow(POSTGRESQL.soft_delete.remove, uuid),  # type: ignore[union-attr]
        }[action]
        took: list[float] = []
        left = iter(range(calls))

        async def one() -> None:
            for number in left:
                began = time.perf_counter()
                await run(uuids[number % len(uuids)])
                took.append(time.perf_counter() - began)

        cpu, started = time.process_time(), time.perf_counter()
        await asyncio.gather(*[one() for _ in range(WORK[action])])
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        took.sort()
        return {
            "rate": calls / wall,
            "cpu_us": cpu / calls * 1e6,
            "p50_ms": took[calls // 2] * 1000,
            "p99_ms": took[int(calls * 0.99)] * 1000,
        }


@contextlib.asynccontextmanager
async def contenders(nats_url: str, database_url: str) -> AsyncIterator[list[Contender]]:
    """Ours first: it makes the table. The names of the cluster's parts differ with the database."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        space = uuid.uuid4().hex[:8]
        caller = await enter(js_node("0.15", nats_url, f"ours-{space}", "caller"))
        ours = await enter(store_process(database_url, nats_url, f"ours-{space}", "store", warm=False))
        await caller.wait_for_services("environments-store")
        ready: list[Contender] = [Served("ours", ours.pid, caller)]
        caller = await enter(js_node("0.15", nats_url, f"js-{space}", "caller"))
        server = await enter(js_node("0.15", nats_url, f"js-{space}", "server"))
        places = {"url": json.dumps(database_url), "packages": json.dumps(f"{SEQUELIZE}/")}
        await server.command("run", code="const require = process.mainModule.require;" + JS_SERVICE % places)
        await caller.wait_for_services("environments-store")
        ready.append(Served("JS", server.process.pid, caller))
        if database_url.startswith("postgresql"):
            ready.append(Bare(await enter(asyncpg.create_pool(database_url, min_size=1, max_size=10))))
        yield ready


async def measure(found: Sequence[Contender], *, calls: int, rounds: int) -> dict[str, dict[str, list[Round]]]:
    """What each contender did in each round, by action; the first round only warms up."""
    results: dict[str, dict[str, list[Round]]] = {action: {one.name: [] for one in found} for action in WORK}
    stored = [str(uuid.uuid4()) for _ in range(DOCUMENTS)]
    await found[0].make("create", stored, DOCUMENTS)
    for number in range(rounds + 1):
        made = {one.name: [str(uuid.uuid4()) for _ in range(calls)] for one in found}
        for action in ("get", "list"):
            for one in found:
                count = calls if action == "get" else max(calls // CALLS_PER_LIST, WORK[action])
                results[action][one.name].append(await one.make(action, stored, count))
        for one in found:
            for action in ("create", "update", "remove"):
                results[action][one.name].append(await one.make(action, made[one.name], calls))
        if number == 0:
            results = {action: {name: [] for name in by_name} for action, by_name in results.items()}
    return results


def table(title: str, results: dict[str, dict[str, list[Round]]]) -> str:
    lines = [f"{title:<22} {'calls/s':>9} {'× JS':>6} {'server µs':>10} {'× JS':>6} {'p50 ms':>8} {'p99 ms':>8}"]
    for action, by_name in results.items():
        lines.append(f" {action}, {WORK[action]} at once")
        medians = {name: _medians(rounds) for name, rounds in by_name.items()}
        js = medians["JS"]
        for name, one in medians.items():
            lines.append(
                f"  {name:<20} {one['rate']:>9,.0f} {one['rate'] / js['rate']:>6.2f} {one['cpu_us']:>10,.0f}"
                f" {one['cpu_us'] / js['cpu_us']:>6.2f} {one['p50_ms']:>8.2f} {one['p99_ms']:>8.2f}"
            )
    return "\n".join(lines)


def _medians(rounds: Sequence[Round]) -> Round:
    found = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    return {**found, "cpu_us": statistics.mean(one["cpu_us"] for one in rounds)}


async def main(calls: int, rounds: int) -> dict[str, dict[str, dict[str, list[Round]]]]:
    """What was measured, by database."""
    install_packages(INTEROP)
    install_packages(SEQUELIZE)
    measured = {}
    with tempfile.TemporaryDirectory() as folder, PostgresServer() as server:
        database = PostgresDatabase(server)
        urls = {"PostgreSQL": database.url, "SQLite": f"sqlite:///{Path(folder) / 'environments.sqlite'}"}
        async with temporary_nats() as nats_url:
            for name, url in urls.items():
                async with contenders(nats_url, url) as found:
                    measured[name] = await measure(found, calls=calls, rounds=rounds)
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = anyio.run(main, options.calls, options.rounds)
    for name, found in results.items():
        print(table(name, found))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
