"""What a test starts for a warm command: hands all it has to tests/support/warm.py, and ends as the command does."""

import os
import signal
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket  # to import `socket`, or `json`, takes as long as the rest

_OF_PYTHON = ("PYTHONIOENCODING", "PYTHONUTF8", "PYTHONCOERCECLOCALE")  # read before a program runs


def main() -> None:
    place, program, *arguments = sys.argv[1:]
    if any(name in os.environ for name in _OF_PYTHON):
        os.execv(sys.executable, [sys.executable, "-m", program, *arguments])
    pid_file = f"{place}.{os.getpid()}"
    beside = {"folder": os.getcwd(), "environment": dict(os.environ), "pid_file": pid_file}
    order = {"program": program, "arguments": arguments, **beside}
    server = socket(AF_UNIX)
    server.connect(place)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda passed, _frame: server.send(bytes([passed])))
    streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    server.sendmsg([b" "], [(SOL_SOCKET, SCM_RIGHTS, streams)])
    server.sendall(ascii(order).encode() + b"\n")
    code = int.from_bytes(server.recv(2), "big", signed=True)
    server.close()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
