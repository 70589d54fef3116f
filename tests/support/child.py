"""Runs a command that must not outlive its starter: `python child.py USER COMMAND…`.

The command takes this process over (same pid), after two preparations that are not safe between fork and exec in a
process with threads: the kernel is told to stop it when its starter dies, however that happens (Linux), and it
changes to USER (`uid:gid`, or `-` to stay), since PostgreSQL refuses to run as root.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    user, *command = sys.argv[1:]
    if user != "-":
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)  # before the wish below: a change of user forgets it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


main()
