"""Runs a program for as long as its starter lives: `python child_reaper.py SECONDS FOLDER COMMAND…`.

The starter holds the other end of this process's standard input, which the system closes however the starter ends: by
itself, killed, or out of memory. Then the program is told to stop, is killed when it has not stopped within so many
seconds, and the folder it worked in is removed. Run by its path, it imports nothing of ours.
"""

import shutil
import signal
import subprocess
import sys
import threading

__all__ = ["main"]


def main() -> int:
    """Gives the program's exit code. A program that ends by itself leaves its folder, for its starter to look at."""
    seconds, folder, *command = sys.argv[1:]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    let_go = threading.Event()

    def stop() -> None:
        sys.stdin.buffer.read()  # nothing comes: it returns when the other end is closed
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
