"""The commands `broker` and `environments-store`, and programs of the tests, without the time that their imports take.

`warm_command("broker", "nodes")` is a command line like any other, for `subprocess` and the shell: arguments,
environment, folder, standard streams, signals and exit code are those of a process of its own. That process is forked
from one that has imported the programs, which starts with the first command and ends with the test run.
"""

import ast
import atexit
import contextlib
import functools
import gc
import importlib
import io
import os
import pkgutil
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.servers import child_command

__all__ = ["PROGRAMS", "forked_pid", "warm_command", "warm_programs"]

_CLIENT = Path(__file__).with_name("warm_client.py")
PROGRAMS = {
    "broker": "broker.__main__",
    "services.environments_store": "services.environments_store.__main__",
    "tests.interop.python_node": "tests.interop.python_node",
    "tests.support.blocks": "tests.support.blocks",
    "tests.support.migrations": "tests.support.migrations",
    "tests.support.starters": "tests.support.starters",
}
"""What `python -m` calls them, and the modules whose `main` runs them."""
_IMPORTED_LATE = ("anyio._backends._asyncio", "typer.rich_utils", *(["uvloop"] if find_spec("uvloop") else []))


def warm_command(program: str, *arguments: str) -> list[str]:
    """What `python -m program arguments` would be."""
    return [sys.executable, "-I", "-S", str(_CLIENT), _server(), program, *arguments]


def forked_pid(client: int) -> int | None:
    """The pid of the program that was forked for the command with this pid; None before it runs."""
    try:
        return int(Path(f"{_server()}.{client}").read_text(encoding="ascii") or 0) or None
    except FileNotFoundError:
        return None


@functools.cache
def warm_programs() -> Path:
    """A folder for PATH with the commands `broker` and `environments-store`, as warm commands."""
    folder = Path(_server()).parent
    for name, program in (("broker", "broker"), ("environments-store", "services.environments_store")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(warm_command(program))} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return folder


@functools.cache
def _server() -> str:
    """The socket of the process that commands are forked from."""
    folder = tempfile.mkdtemp(prefix="environments-store-warm-")
    place = f"{folder}/socket"
    process = subprocess.Popen(
        child_command([sys.executable, "-m", "tests.support.warm", place]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return place


@dataclass
class _Order:
    program: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    pid_file: str


def _serve(place: str) -> None:
    packages = (importlib.import_module(name) for name in ("broker", "services.environments_store"))
    parts = (part.name for one in packages for part in pkgutil.walk_packages(one.__path__, f"{one.__name__}."))
    for name in (*PROGRAMS.values(), *_IMPORTED_LATE, *parts):
        importlib.import_module(name)
    for program, command in (("broker", "nodes"), ("services.environments_store", "stats")):
        sys.argv = [program, command, "--help"]  # the first one imports the rest
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            sys.modules[PROGRAMS[program]].main()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(128)
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, "order")
    selector.register(woken, selectors.EVENT_READ, "ended")
    clients: dict[int, socket.socket] = {}
    os.write(1, b"ready\n")
    while True:
        for key, _ in selector.select():
            if key.data == "order":
                client = listener.accept()[0]
                pid = _fork(client)
                clients[pid] = client
                selector.register(client, selectors.EVENT_READ, pid)
            elif key.data == "ended":
                woken.recv(4096)
                for pid, code in iter(_ended, None):
                    selector.unregister(clients[pid])
                    with clients.pop(pid) as client, contextlib.suppress(OSError):  # it may have been killed
                        client.send(code.to_bytes(2, "big", signed=True))
            elif key.data in clients:  # the client has ended, or passes a signal on
                with contextlib.suppress(OSError):
                    passed = clients[key.data].recv(1)
                    os.kill(key.data, passed[0] if passed else signal.SIGKILL)


def _ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _fork(client: socket.socket) -> int:
    received, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while not received.endswith(b"\n"):
        received += client.recv(1 << 20)
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return pid
    try:
        code = _run(_Order(**ast.literal_eval(received.decode())), streams)
    except BaseException:
        traceback.print_exc()
        code = 1
    for written in (sys.stdout, sys.stderr):
        try:
            written.flush()
        except OSError:
            code = code or 120  # as Python ends when it cannot write what is left
    os._exit(code)


def _run(order: _Order, streams: list[int]) -> int:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 256)
    Path(order.pid_file).write_text(str(os.getpid()), encoding="ascii")
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.stdin, sys.stdout, sys.stderr = _text(0, "r"), _text(1, "w"), _text(2, "w", errors="backslashreplace")
    sys.argv = [order.program, *order.arguments]
    sys.path[0] = ""
    if os.environ.get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    try:
        sys.modules[PROGRAMS[order.program]].main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _text(number: int, mode: str, errors: str = "strict") -> Any:
    if mode == "w" and os.environ.get("PYTHONUNBUFFERED"):
        return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", errors, write_through=True)
    return open(number, mode, buffering=1 if os.isatty(number) else -1, encoding="utf-8", errors=errors, closefd=False)


if __name__ == "__main__":
    _serve(sys.argv[1])
