"""How the rooms of the broker depend on each other, by every import of the source, those for type checkers too."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]

ROOMS = (
    *("__main__", "cli", "__init__", "broker", "calling", "node", "transports", "internals", "middlewares"),
    *("conversation", "streams", "registry", "services", "context", "options", "protocol"),
    "defaults cancellation logs masking ids errors",
)
"""From the top down; a room is a folder, or a module of its own."""

PURE = ("conversation", "registry", "services", "context", "options", "protocol", "defaults")
"""Rooms that decide and do nothing else: they have no loop, socket or file, and are handed the time."""

IMPURE = {"aiosqlite", "anyio", "asyncio", "nats", "pathlib", "select", "socket", "ssl", "subprocess", "threading"}
LEVELS = 20  # the longest chain of imports within the broker

STORE = "services.environments_store"
LIBRARIES = {
    "nats": "broker.transports.nats",
    "cbor2": "broker.protocol.codecs.cbor",
    "cryptography": "broker.protocol.transforms",
    "asyncpg": f"{STORE}.database.postgres",
    "aiosqlite": f"{STORE}.database.sqlite {STORE}.schema. {STORE}.operations.",
    "typer": f"broker.__main__ broker.cli. {STORE}.__main__ {STORE}.commands.",
    "rich": f"broker.cli. {STORE}.commands.",
}
"""The modules that may import a library, by the beginnings of their names."""

PUBLIC = ("broker", "broker.errors", "broker.logs", "broker.protocol.members")
"""What services may use of the broker besides `broker.cli`, of which their command lines are made."""


@functools.cache
def modules() -> dict[str, Path]:
    paths = [path for package in ("broker", "services") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The modules that a module imports: `from a import b` is `a.b` when that is a module, else `a`."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in modules() else node.module or "" for member in members}
    return frozenset(found - {name})


def reached(name: str, seen: set[str]) -> set[str]:
    """Everything that a module imports, directly or through others."""
    for other in imports(name) - seen:
        seen.add(other)
        if other in modules():
            reached(other, seen)
    return seen


BROKER = {name for name in modules() if name.split(".")[0] == "broker"}
SERVICES = modules().keys() - BROKER
ROOM_OF = {name: f"{name}.__init__".split(".")[1] for name in BROKER}


def test_every_entry_of_the_broker_is_a_room_of_the_list() -> None:
    entries = [path.stem for path in (ROOT / "broker").iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert sorted(entries) == sorted(" ".join(ROOMS).split())
    assert len(entries) < 25


def test_a_room_imports_only_rooms_below_it() -> None:
    rank = {name: number for number, line in enumerate(ROOMS) for name in line.split()}
    for name in BROKER:
        for other in imports(name) & BROKER:
            is_lower = ROOM_OF[name] == ROOM_OF[other] or rank[ROOM_OF[name]] < rank[ROOM_OF[other]]
            assert is_lower, f"{name} imports {other}"


def test_no_import_leads_back_and_no_chain_is_long() -> None:
    levels: dict[str, int] = {}

    def level(name: str, path: tuple[str, ...]) -> int:
        assert name not in path, f"a cycle: {' → '.join([*path, name])}"
        if name not in levels:
            below = [level(other, (*path, name)) for other in imports(name) & modules().keys()]
            levels[name] = 1 + max(below, default=0)
        return levels[name]

    assert max(level(name, ()) for name in BROKER) <= LEVELS
    assert all(level(name, ()) for name in SERVICES)


def test_a_pure_room_reaches_no_loop_socket_or_file_through_any_import() -> None:
    for name in (name for name in BROKER if ROOM_OF[name] in PURE):
        assert not {other.split(".")[0] for other in reached(name, set())} & IMPURE, name


def test_a_library_is_imported_where_it_belongs() -> None:
    for library, places in LIBRARIES.items():
        users = {name for name in modules() for other in imports(name) if other.split(".")[0] == library}
        assert {name for name in users if not name.startswith(tuple(places.split()))} == set(), library


def test_services_use_public_names_of_the_broker_and_the_broker_knows_no_service() -> None:
    assert not {name for name in BROKER for other in imports(name) if other.split(".")[0] == "services"}
    for name in SERVICES:
        used = {other for other in imports(name) if other.split(".")[0] == "broker"}
        assert {other for other in used if not other.startswith("broker.cli.")} <= set(PUBLIC), name


def test_the_tests_of_the_broker_mirror_its_rooms() -> None:
    rooms = {path.parent.name for path in (ROOT / "tests" / "broker").glob("*/__init__.py")}
    assert rooms <= {path.name for path in (ROOT / "broker").iterdir()}
