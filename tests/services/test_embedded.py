"""The NATS server of the extra `embedded`."""

import os
import sys
from pathlib import Path

import pytest

from services.environments_store.embedded import embedded_server, is_answering, loopback_port
from services.environments_store.errors import ConfigError
from tests.support.ports import free_port
from tests.support.processes import start_python
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_it_answers_inside_the_block_and_is_gone_after_it() -> None:
    async with embedded_server() as server:
        assert await is_answering(server.url)
        assert server.url.startswith("nats://127.0.0.1:")
        os.kill(server.pid, 0)
    assert not await is_answering(server.url)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


STARTER = """
import anyio
from services.environments_store.embedded import embedded_server

async def main():
    async with embedded_server() as server:
        print("pid", server.pid, "url", server.url, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.parametrize("how", ["kill", "terminate"])
async def test_it_does_not_outlive_a_starter_that_is_killed(how: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    async with start_python("-c", STARTER, environment=environment) as process:
        _, pid, _, url = (await process.line("pid")).split()
        assert await is_answering(url)
        assert len(os.listdir(tmp_path)) == 1
        await getattr(process, how)()
    await eventually(lambda: not _runs(int(pid)), "the end of the server")
    await eventually(lambda: not os.listdir(tmp_path), "the removal of its folder")
    assert not await is_answering(url)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_takes_the_port_it_is_given() -> None:
    port = free_port()
    async with embedded_server(port) as server:
        assert server.url == f"nats://127.0.0.1:{port}"


async def test_a_port_in_use_is_told() -> None:
    async with embedded_server() as server:
        with pytest.raises(ConfigError, match="address already in use"):
            async with embedded_server(int(server.url.rpartition(":")[2])):
                pass


async def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'environments-store\[embedded\]'"):
        async with embedded_server():
            pass


async def test_any_of_several_servers_that_answers_counts() -> None:
    nobody = f"nats://127.0.0.1:{free_port()}"
    async with embedded_server() as server:
        assert await is_answering(f"{nobody},{server.url}")
        assert not await is_answering(nobody)


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("nats://127.0.0.1:4333", 4333),
        ("nats://localhost", 4222),
        ("nats://[::1]:1", 1),
        ("nats://u:p@127.0.0.1:5", 5),
        ("nats://nats:4222", None),
    ],
)
def test_only_addresses_of_this_machine_give_their_port(url: str, port: int | None) -> None:
    assert loopback_port(url) == port
