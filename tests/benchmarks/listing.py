"""`list` of 50 environments of 10 kB, asked over NATS, from SQLite and from PostgreSQL.

    python -m tests.benchmarks.listing

Both nodes run in this process, on connections of their own. The first list after a start turns every document into
its hash; the rounds measure what comes after, as callers do all day.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from broker import ServiceBroker
from services.environments_store.service import EnvironmentsStore
from tests.benchmarks.measure import figures, interleaved, temporary_nats
from tests.support.postgres import PostgresDatabase, PostgresServer

ROUNDS = 5
CALLS = 50
DOCUMENTS = 50
DOCUMENT_BYTES = 10_000


def document(number: int) -> dict[str, Any]:
    """A document of the wanted size, made of routes like those that the original stores."""
    route = {"method": "get", "endpoint": "users/:id", "responses": [{"statusCode": 200, "body": '{"name": "é"}'}]}
    routes = DOCUMENT_BYTES // 110
    return {"name": f"Environment {number}", "port": 3000 + number, "routes": [route] * routes}


async def compare(nats_url: str, databases: dict[str, str]) -> None:
    sqlite, postgres = databases["SQLite"], databases["PostgreSQL"]
    async with (
        ServiceBroker("store", namespace="a", transporter=nats_url, services=[EnvironmentsStore(sqlite)]),
        ServiceBroker("store", namespace="b", transporter=nats_url, services=[EnvironmentsStore(postgres)]),
        ServiceBroker("client", namespace="a", transporter=nats_url) as sqlite_client,
        ServiceBroker("client", namespace="b", transporter=nats_url) as postgres_client,
    ):
        clients = {"SQLite": sqlite_client, "PostgreSQL": postgres_client}
        for name, client in clients.items():
            await client.wait_for_services("environments-store")
            for number in range(DOCUMENTS):
                await client.call("environments-store.create", {"environment": document(number)})
            started = time.perf_counter()
            records = await client.call("environments-store.list")
            first = (time.perf_counter() - started) * 1000
            assert len(records) == DOCUMENTS
            print(f"{name}: the first list took {first:.1f} ms")
        for at_once in (1, 10):
            results = await interleaved(
                {
                    "SQLite": lambda: sqlite_client.call("environments-store.list"),
                    "PostgreSQL": lambda: postgres_client.call("environments-store.list"),
                },
                rounds=ROUNDS,
                calls=CALLS,
                at_once=at_once,
            )
            print(f"{at_once} at once, {ROUNDS} rounds of {CALLS}:")
            for name, rates in results.items():
                print(figures(name, rates, "lists/s"))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, PostgresServer() as server:
        database = PostgresDatabase(server)
        databases = {"SQLite": f"sqlite:///{Path(folder) / 'environments.sqlite'}", "PostgreSQL": database.url}
        async with temporary_nats() as nats_url:
            await compare(nats_url, databases)


if __name__ == "__main__":
    anyio.run(main)
