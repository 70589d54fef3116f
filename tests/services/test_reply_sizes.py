"""How much of a store fits one reply, in each serializer: never more than the server takes, and no page refused that
would fit. Other serializers write a document longer or shorter than its JSON text."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import Compression, Encryption, MoleculerError, ServiceBroker
from services.environments_store.service import EnvironmentsStore

pytestmark = pytest.mark.anyio

MAX_PAYLOAD = 16_384
SERIALIZERS = ("JSON", "JSONExt", "MsgPack", "CBOR")
FRACTIONS = b"[%s]" % b",".join([b"0.1"] * 300)  # twice as long in MsgPack and CBOR
MARKED = json.dumps(["[["] * 300).encode()  # twice as long in JSONExt
SPACES = b"[%s]" % b",   ".join([b"1"] * 300)  # far shorter in MsgPack and CBOR
DOCUMENTS = {"fractions": FRACTIONS, "marked": MARKED, "spaces": SPACES}


@asynccontextmanager
async def caller_of_a_store(url: str, namespace: str, folder: Path, **options: Any) -> AsyncIterator[ServiceBroker]:
    """A node that calls a store on another node."""
    store = EnvironmentsStore(f"sqlite:///{folder / 'store.sqlite'}")
    async with (
        ServiceBroker("store", namespace=namespace, transporter=url, services=[store], **options),
        ServiceBroker("caller", namespace=namespace, transporter=url, **options) as caller,
    ):
        await caller.wait_for_services("environments-store", timeout=30)
        yield caller


async def create(caller: ServiceBroker, uuid: str, content: bytes) -> Any:
    environment = msgspec.Raw(b'{"uuid":"%s","content":%s}' % (uuid.encode(), content))
    return await caller.call("environments-store.create", {"environment": environment})


async def assert_pages_fit(caller: ServiceBroker, count: int) -> None:
    """The page size that the refusal of the whole list names fits, and one more does not."""
    with pytest.raises(MoleculerError) as caught:
        await caller.call("environments-store.list")
    assert (caught.value.code, caught.value.type) == (413, "PAYLOAD_TOO_LARGE")
    size = caught.value.data["pageSize"]
    assert 1 <= size < count
    assert len(await caller.call("environments-store.list", {"limit": size})) == size
    with pytest.raises(MoleculerError) as caught:
        await caller.call("environments-store.list", {"limit": size + 1})
    assert caught.value.data["pageSize"] == size


@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=DOCUMENTS.keys())
async def test_c86_the_page_size_named_is_the_largest_that_fits(
    serializer: str, content: bytes, namespace: str, make_nats_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = make_nats_server(max_payload=MAX_PAYLOAD)
    async with caller_of_a_store(server.url, namespace, tmp_path, serializer=serializer) as caller:
        for number in range(40):
            await create(caller, f"u-{number:02}", content)
        await assert_pages_fit(caller, 40)


@pytest.mark.parametrize("serializer", SERIALIZERS)
async def test_c86_what_can_be_created_can_be_read_and_what_is_refused_could_not(
    serializer: str, namespace: str, make_nats_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = make_nats_server(max_payload=MAX_PAYLOAD)
    async with caller_of_a_store(server.url, namespace, tmp_path, serializer=serializer) as caller:
        refused: list[int] = []
        for kind, content in DOCUMENTS.items():
            for size in (*range(1_000, 15_000, 2_000), *range(15_000, 16_200, 100)):
                items = content[1:-1].split(b",")
                repeated = b"[%s]" % b",".join(items * 60)[: size + 1].rsplit(b",", 1)[0]
                uuid = f"{kind}-{size}"
                try:
                    await create(caller, uuid, repeated)
                except MoleculerError as error:
                    assert error.code == 413  # noqa: PT017 - both outcomes are right, and what follows is asserted
                    refused.append(size)
                    with pytest.raises(MoleculerError) as caught:
                        await caller.call("environments-store.get", {"uuid": uuid})
                    assert caught.value.code == 404, "nothing was stored"
                else:
                    await caller.call("environments-store.get", {"uuid": uuid})
        assert refused


@pytest.mark.parametrize("transforms", [[Compression()], [Encryption("password"), Compression("gzip", None)]], ids=len)
async def test_c85_c86_compressed_replies_hold_what_fits_compressed(
    transforms: list[Any], namespace: str, make_nats_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = make_nats_server(max_payload=MAX_PAYLOAD)
    async with caller_of_a_store(server.url, namespace, tmp_path, transforms=transforms) as caller:
        for number in range(10):
            await create(caller, f"u-{number}", b'"%s"' % (b"x" * 100_000))
        listed = await caller.call("environments-store.list")
        assert [len(record["environment"]["content"]) for record in listed] == [100_000] * 10
        noise = bytes(range(35, 92)) + bytes(range(93, 127))
        for number in range(10, 30):
            mixed = bytes(noise[(place * place * 31 + number) % len(noise)] for place in range(3_000))
            await create(caller, f"u-{number}", b'"%s"' % mixed)
        assert await caller.call("environments-store.get", {"uuid": "u-29"})
