"""Runs a program for as long as its parent lives: `python child_reaper.py SECONDS FOLDER COMMAND…`.

The parent holds the other end of this process's standard input, which the system closes however the parent ends. Then
the program gets SIGTERM, is killed if it does not stop within SECONDS, and its FOLDER is removed. This file is run by
its path and imports only the standard library.
"""

import shutil
import signal
import subprocess
import sys
import threading

__all__ = ["main"]


def main() -> int:
    """Return the program's exit code. A program that ends by itself leaves its folder, for its parent to read."""
    seconds, folder, *command = sys.argv[1:]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    let_go = threading.Event()

    def stop() -> None:
        sys.stdin.buffer.read()  # returns when the other end is closed
        let_go.set()
        process.terminate()
        try:
            process.wait(float(seconds))
        except subprocess.TimeoutExpired:
            process.kill()

    threading.Thread(target=stop, daemon=True).start()
    code = process.wait()
    if let_go.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
