"""Nodes whose NATS user has few permissions, and a server that stores all subjects."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import nats
import pytest

from broker import Context, MoleculerError, RequestRejectedError, Service, action
from services.environments_store.service import EnvironmentsStore
from tests.conftest import NatsServerFactory
from tests.support.cluster import Cluster, open_cluster, shorten_waits
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio
SIZE = 6_000_000
EXACT = '["MOL.*", "MOL.*.one", "MOL.*.two"]'


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 100_000):
        yield bytes(100_000)


class Text(Service):
    name = "text"
    open = made = 0

    @action
    async def none(self, ctx: Context) -> None:
        pass

    @action
    async def make(self, ctx: Context, size: int) -> AsyncIterator[bytes]:
        self.open += 1
        self.made += 1
        try:
            async for chunk in chunks(size):
                yield chunk
        finally:
            self.open -= 1

    @action
    async def count(self, ctx: Context) -> int:
        return sum([len(chunk) async for chunk in ctx.stream])

    @action
    async def hang(self, ctx: Context) -> None:
        await anyio.sleep_forever()


@pytest.fixture
async def server_url(request: pytest.FixtureRequest, make_nats_server: NatsServerFactory, tmp_path: Path) -> str:
    """The URL of a server whose user may publish and subscribe only to these subjects, or has the given permissions,
    or of one that stores all subjects."""
    if request.param == "stored":
        server = make_nats_server(jetstream=f'{{ store_dir: "{tmp_path}/stored" }}')
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(name="AUDIT", subjects=["MOL.>"])
        await client.close()
        return server.url
    rights = request.param
    if not rights.startswith("publish:"):
        rights = f"publish: {rights}, subscribe: {rights}"
    server = make_nats_server(authorization=f"{{ users: [{{ user: a, password: b, permissions: {{ {rights} }} }}] }}")
    return server.url.replace("//", "//a:b@")


@pytest.fixture
async def cluster(server_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    shorten_waits(monkeypatch)
    async with open_cluster(server_url, "") as cluster:
        yield cluster


ways = pytest.mark.parametrize(
    "server_url",
    [pytest.param('"MOL.>"', marks=pytest.mark.long), EXACT, "stored"],
    ids=["prefix", "exact", "stored"],
    indirect=True,
)


@ways
async def test_streams_arrive_complete_in_both_directions(cluster: Cluster) -> None:
    text = Text()
    _, two = await cluster.start(("one", [text]), ("two", []))
    stream = await two.call("text.make", {"size": SIZE}, timeout=30)
    assert len(await stream.read()) == SIZE
    assert await two.call("text.count", stream=chunks(SIZE), timeout=30) == SIZE
    await eventually(lambda: not text.open)


@pytest.mark.parametrize("server_url", ['{ allow: "MOL.>", deny: "MOL.PING.>" }'], indirect=True)
async def test_streams_arrive_complete_where_nodes_may_not_ping(cluster: Cluster) -> None:
    _, two = await cluster.start(("one", [Text()]), ("two", []))
    stream = await two.call("text.make", {"size": SIZE}, timeout=30)
    assert len(await stream.read()) == SIZE


@pytest.mark.parametrize("server_url", ['{ allow: "MOL.>", deny: "MOL.PONG.>" }'], indirect=True)
async def test_a_stream_to_a_node_that_may_not_answer_pings_breaks_off_at_both_ends(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.streams.flow.STREAM_IDLE_TIMEOUT_S", 0.5)
    text = Text()
    _, two = await cluster.start(("one", [text]), ("two", []))
    stream = await two.call("text.make", {"size": SIZE}, timeout=30)
    with pytest.raises(MoleculerError, match="may it receive PING and send PONG"):
        await stream.read()
    assert not text.open


@ways
async def test_imported_environments_are_exported_completely(cluster: Cluster, tmp_path: Path) -> None:
    store = EnvironmentsStore(f"sqlite:///{tmp_path}/environments.sqlite")
    _, two = await cluster.start(("one", [store]), ("two", []))
    documents = ({"environment": {"uuid": f"u{number}", "pad": "x" * 60_000}} for number in range(60))
    lines = (json.dumps(document).encode() + b"\n" for document in documents)
    assert (await two.call("environments-store.import", stream=lines, timeout=60))["created"] == 60
    exported = await (await two.call("environments-store.export", timeout=60)).read()
    assert exported.count(b"\n") == 60


@pytest.mark.parametrize("server_url", ['"MOL.>"', "stored"], indirect=True)
async def test_a_second_node_with_the_same_id_is_refused(cluster: Cluster) -> None:
    await cluster.start_one("one")
    with pytest.raises(MoleculerError, match="is running"):
        await cluster.make("one").start()


@pytest.mark.parametrize("server_url", ['"MOL.>"'], indirect=True)
async def test_a_lost_node_is_noticed_at_once_where_the_prefix_alone_is_allowed(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await cluster.start(("one", [Text()]), ("two", []))
    await cluster.kill(one)
    with pytest.raises(RequestRejectedError):
        await two.call("text.hang", timeout=30)
    assert "permissions" not in caplog.text.lower()


@pytest.mark.parametrize("server_url", [EXACT], indirect=True)
async def test_a_node_without_an_inbox_logs_it_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    await cluster.start(("one", []), ("two", []))
    logged = [record.getMessage() for record in caplog.records if "MOL.REPLY.>" in record.getMessage()]
    assert len(logged) == 2  # one for each node


@pytest.mark.parametrize("server_url", ['["MOL.*", "MOL.RES.>", "MOL.REPLY.>", "MOL.INFO.>"]'], indirect=True)
async def test_a_call_without_permission_to_publish_fails_at_once_and_names_the_subject(
    server_url: str, cluster: Cluster
) -> None:
    _, two = await cluster.start(("one", [Text()]), ("two", []))
    with pytest.raises(MoleculerError, match=r"publish to 'MOL\.REQ\.one'") as caught:
        await two.call("text.hang")
    assert (caught.value.type, caught.value.data) == ("PUBLISH_DENIED", {"subject": "MOL.REQ.one"})


@pytest.mark.parametrize("server_url", ['publish: { allow: "MOL.>", deny: "MOL.RES.>" }'], indirect=True)
async def test_answers_without_permission_to_publish_are_logged_once_and_their_streams_end(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    text = Text()
    _, two = await cluster.start(("one", [text]), ("two", []))
    for action_name in ("none", "make", "make"):
        with pytest.raises(MoleculerError):
            await two.call(f"text.{action_name}", {"size": SIZE * 1_000}, timeout=0.5)
    await eventually(lambda: text.made == 2 and not text.open, "the streams without a reader to end")
    lines = [record.getMessage() for record in caplog.records if "permission" in record.getMessage()]
    assert len(lines) == 1
    assert "publish to 'MOL.RES.two'" in lines[0]
