"""How the modules may depend on each other: ranks as data, checked against every import of the source.

A module imports lower ranks of its own package only, so each can be read, tested and replaced with nothing above it in
mind. I/O libraries are named with the few files that may import them. Imports for type checkers alone do not count.
"""

import ast
import functools
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each line is a rank; a module imports lines above its own.
BROKER = [
    "buffers cancellation cli.output cli.progress codecs.marks typed cpu errors ids interruptible"
    " javascript masking members network packets patterns rules strategies.base strategies.latencies strategies.lowest"
    " strategies.round_robin strategies.uniform tracking transforms.base transports.base uptime values",
    "cli.logs context conversion declarations defaults encoding inheritance reader strategies.shard topics"
    " transports.memory transports.nats_address",
    "balanced cli.files cli.options cli.values cache_keys cacher codec local_stream middleware notices outage pace"
    " parameters policies streams transforms.compression transforms.encryption transports.nats_client watch"
    " workers",
    "flow lifecycle mcall strategies middlewares.bulkhead middlewares.caching middlewares.circuit"
    " middlewares.error_handling middlewares.fallback middlewares.hooks middlewares.retry middlewares.throttle"
    " middlewares.timeout middlewares.validation options transports.nats_link",
    "middlewares.debounce schema transports.nats",
    "actions codecs.cbor codecs.json_ext codecs.msgpack codecs.transforming endpoints service transforms transports",
    "cli.targets codecs effects internals.health internals.options middlewares.circuit_breaker registry",
    "chains farewell internals.listing outgoing peer_exchange receiving",
    "announcing internals.service waiting",
    "identity transit writers",
    "internal_events performing",
    "joining",
    "node",
    "upload",
    "catalog emitting pinging sending",
    "calls serving",
    "broker",
    "cli.running __init__",
    "cli.client",
    "cli.commands.calling cli.commands.events cli.commands.lists cli.commands.nodes",
    "__main__",
]
ENVIRONMENTS_STORE = [
    "canonical commands.progress database.base database.statements defaults errors leash operations.checks queries.base"
    " schema.messages schema.names",
    "database.failures database.location embedded hash model outcome queries.postgresql queries.sqlite"
    " schema.guards schema.ladder schema.leftovers schema.sql schema.status",
    "aliases config database.postgres_session database.large database.sqlite_place database.turns document queries"
    " queries.purging queries.transfer schema.inspection schema.outcomes",
    "database.postgres_pool database.sqlite_guarded listing operations.lines operations.progress records"
    " schema.blockers schema.faults schema.index schema.inspect_postgres shape",
    "database.postgres database.sqlite_connection operations.exporting operations.presence"
    " operations.purge operations.spool schema.findings schema.plan schema.postgres_steps store",
    "database.sqlite schema.inspect_sqlite schema.journal schema.sqlite_steps schema.trial",
    "database.connect operations.backup_postgres operations.backup_sqlite operations.retention operations.staging"
    " operations.rollback_postgres operations.rollback_sqlite operations.rows operations.surroundings"
    " operations.surroundings_sqlite schema.check schema.postgres_index schema.sqlite_migration",
    "operations.checklist operations.importing operations.opening operations.planning schema.postgres_migration",
    "operations.backup operations.doctor operations.list_index operations.rollback operations.verify schema.migrator",
    "service",
    "commands.options commands.patience commands.showing commands.transfer demo",
    "commands.data commands.migrate",
    "__main__",
]

# The files that may import a library; nobody else.
LIBRARIES = {
    "nats": {"broker.transports.nats", "broker.transports.nats_client", "broker.transports.nats_link"},
    "asyncio": {
        f"broker.{name}"
        for name in (
            "broker",
            "calls",
            "cancellation",
            "flow",
            "node",
            "pace",
            "performing",
            "pinging",
            "reader",
            "sending",
            "transports.nats",
            "transports.nats_client",
            "workers",
            "transports.nats_link",
        )
    },
    "asyncpg": {f"services.environments_store.database.{name}" for name in ("postgres_pool", "postgres_session")},
    "aiosqlite": {
        "services.environments_store.database.sqlite",
        "services.environments_store.database.sqlite_connection",
        "services.environments_store.database.sqlite_guarded",
        "services.environments_store.schema.inspect_sqlite",
        "services.environments_store.schema.sqlite_migration",
    },
    "sqlite3": {
        "services.environments_store.database.sqlite",
        "services.environments_store.database.sqlite_connection",
        "services.environments_store.database.sqlite_guarded",
        "services.environments_store.operations.rollback_sqlite",
        "services.environments_store.schema.sqlite_migration",
    },
    "cbor2": {"broker.protocol.codecs.cbor"},
    "cryptography": {"broker.protocol.transforms.encryption"},
    "typer": {
        "broker.__main__",
        *(f"broker.cli.{name}" for name in ("client", "options", "values")),
        *(f"broker.cli.commands.{name}" for name in ("calling", "events", "lists", "nodes")),
        "services.environments_store.__main__",
        "services.environments_store.commands.data",
        "services.environments_store.commands.migrate",
        "services.environments_store.commands.options",
    },
    "rich": {"broker.cli.output", "broker.cli.progress", "services.environments_store.commands.progress"},
    "subprocess": {
        f"services.environments_store.{name}" for name in ("embedded", "leash", "operations.backup_postgres")
    },
}

# Decisions without a loop, a clock or a socket: they are handed in.
PURE = (
    *(
        "actions",
        "announcing",
        "balanced",
        "codec",
        "codecs.cbor",
        "codecs.json_ext",
        "codecs.marks",
        "codecs.msgpack",
        "codecs.transforming",
        "typed",
        "context",
        "declarations",
        "effects",
        "emitting",
        "encoding",
        "endpoints",
        "errors",
        "members",
        "middleware",
        "packets",
        "peer_exchange",
    ),
    *("outgoing", "parameters", "patterns", "receiving", "registry", "schema", "service", "streams"),
    *("topics", "transforms.base", "transforms.compression", "transforms.encryption", "transit", "values"),
    *("waiting", "watch"),
    *("cache_keys", "javascript", "policies", "strategies", "strategies.base", "strategies.latencies"),
    *("strategies.lowest", "strategies.round_robin", "strategies.shard", "strategies.uniform"),
    *("middlewares.caching", "middlewares.circuit", "middlewares.debounce", "middlewares.error_handling"),
    *("middlewares.fallback", "middlewares.hooks", "middlewares.throttle", "middlewares.validation"),
)
IMPURE_LIBRARIES = {"anyio", "asyncio", "nats", "select", "socket", "subprocess", "threading", "time"}

# What `services` may use of the broker: its public names, its errors, and what its command lines are made of.
PUBLIC = ("broker", "broker.errors", "broker.protocol.members", "broker.cli.")

# Modules without a test file of their own name, by the suite that covers them.
SUITES = {
    "broker/cli/test_commands.py": "broker.cli.client broker.cli.commands.calling broker.cli.commands.events"
    " broker.cli.commands.lists broker.cli.commands.nodes broker.cli.options broker.cli.progress",
    "interop/test_calls.py": "broker broker.actions broker.broker broker.calls broker.catalog broker.context"
    " broker.endpoints broker.node broker.service broker.serving",
    "interop/test_errors.py": "broker.middlewares.base broker.middlewares.timeout broker.services.parameters broker.services.schema",
    "interop/test_life.py": "broker.conversation.effects broker.node.network broker.transports broker.transports.base"
    " broker.transports.nats broker.transports.nats_address broker.transports.nats_client"
    " broker.transports.nats_link",
    "broker/test_codecs.py": "broker.protocol.encoding broker.protocol.typed broker.protocol.values",
    "broker/test_transforms.py": "broker.protocol.codecs.transforming broker.protocol.transforms.base broker.protocol.transforms.compression"
    " broker.transforms.encryption",
    "contract/test_fault_tolerance.py": "broker.middlewares.chains",
    "interop/test_info.py": "broker.node.identity",
    "interop/test_visits.py": "broker.node.joining",
    "contract/test_broker.py": "broker.calling.mcall",
    "contract/test_broker_outage.py": "broker.node.outage",
    "contract/test_strategies.py": "broker.node.pinging broker.registry.strategies broker.registry.strategies.base",
    "contract/test_streams.py": "broker.node.effects broker.calling.sending",
    "contract/test_broker_notices.py": "broker.calling.farewell broker.calling.internal_events",
    "interop/test_mixed_cluster.py": "broker.node.cpu broker.calling.events",
    "interop/test_streams.py": "broker.streams.flow broker.calling.outgoing broker.node.effects broker.streams.reader broker.conversation.incoming_streams"
    " broker.sending broker.streams",
    "test_readme.py": "broker.__main__ broker.cli.logs broker.cli.output broker.cli.running broker.cli.targets"
    " broker.defaults broker.middlewares.retry broker.transports.memory",
    "contract/test_database.py": "database.base database.connect database.failures database.postgres_pool"
    " database.postgres_session database.sqlite database.sqlite_connection database.statements database.turns",
    "contract/test_store.py": "aliases defaults errors queries queries.base queries.postgresql queries.sqlite"
    " records store",
    "contract/test_store_documents.py": "document",
    "contract/test_store_degraded.py": "shape",
    "contract/test_store_lists.py": "listing",
    "contract/test_store_outcomes.py": "outcome",
    "contract/test_refusals.py": "schema.guards",
    "services/test_embedded.py": "leash",
    "contract/test_backup.py": "operations.backup operations.backup_postgres operations.backup_sqlite",
    "contract/test_checklist.py": "operations.checklist operations.surroundings operations.surroundings_sqlite",
    "contract/test_list_index.py": "operations.list_index",
    "contract/test_doctor.py": "operations.doctor operations.rows",
    "contract/test_plan_and_verify.py": "operations.checks operations.planning operations.progress operations.verify",
    "contract/test_purge.py": "operations.purge operations.retention queries.purging",
    "contract/test_transfer.py": "database.large operations.exporting operations.importing operations.lines"
    " operations.spool operations.staging queries.transfer",
    "faults/test_m43_rollback.py": "operations.presence operations.rollback operations.rollback_postgres"
    " operations.rollback_sqlite",
    "services/test_cli.py": "__main__ commands.options commands.showing operations.opening",
    "services/test_cli_operations.py": "commands.data commands.migrate commands.patience commands.progress"
    " commands.transfer",
    "services/test_schema_check.py": "schema.findings",
    "contract/test_odd_tables.py": "schema.faults schema.trial",
    "faults/test_m13_rights.py": "schema.journal schema.messages",
    "services/test_schema_rules.py": "schema.index schema.ladder schema.outcomes schema.plan",
    "faults/test_m01_shapes.py": "schema.blockers schema.inspect_postgres schema.inspection"
    " schema.migrator schema.names schema.postgres_index schema.postgres_migration schema.postgres_steps"
    " schema.status",
    "faults/test_m24_original_beside_us.py": "database.sqlite_guarded",
    "faults/test_m34_files_taken_away.py": "database.sqlite_place",
    "faults/test_m30_sqlite.py": "schema.inspect_sqlite schema.leftovers schema.sqlite_migration schema.sqlite_steps",
}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of both packages that holds code, by name (`broker.cli.output`)."""
    found: dict[str, Path] = {}
    for package in ("broker", "services"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ast.parse(path.read_text(encoding="utf-8")).body[1:]:  # more than a docstring
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(path: Path) -> list[tuple[str, str | None]]:
    """The modules that a file imports, with the imported name when it takes one out of the module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


@functools.cache
def ranks() -> dict[str, int]:
    """Every module's rank within its package."""
    result: dict[str, int] = {}
    for package, lines in (("broker", BROKER), ("services.environments_store", ENVIRONMENTS_STORE)):
        for rank, line in enumerate(lines):
            for name in line.split():
                result[f"{package}.{name}".removesuffix(".__init__")] = rank
    return result


def imported_modules(path: Path) -> set[str]:
    """`from a import b` is an import of `a.b` when that is a module, else of `a`."""
    known = modules()
    return {f"{module}.{name}" if f"{module}.{name}" in known else module for module, name in imports(path)}


MODULES = modules()


def test_every_module_has_a_rank_and_every_rank_a_module() -> None:
    assert sorted(MODULES.keys() - ranks().keys()) == [], "new modules: give them a rank"
    assert sorted(ranks().keys() - MODULES.keys()) == [], "gone modules: take them out"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downward(name: str) -> None:
    package = name.split(".")[0]
    own = {other for other in imported_modules(MODULES[name]) if other in ranks() and other.split(".")[0] == package}
    assert sorted(other for other in own - {name} if ranks()[other] >= ranks().get(name, 0)) == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("broker")])
def test_the_broker_knows_no_service(name: str) -> None:
    assert [other for other in imported_modules(MODULES[name]) if other.split(".")[0] == "services"] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("services")])
def test_services_use_public_names_of_the_broker(name: str) -> None:
    for module, imported in imports(MODULES[name]):
        if module.split(".")[0] == "broker":
            assert module in PUBLIC or module.startswith(PUBLIC[-1]), module
            assert imported is not None
            public = getattr(importlib.import_module(module), "__all__", None)
            public_name = imported in public if public else not imported.startswith("_")
            assert public_name, f"{imported} of {module} is not public"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_where_it_belongs(library: str) -> None:
    users = {name for name, path in MODULES.items() for module, _ in imports(path) if module.split(".")[0] == library}
    assert users == LIBRARIES[library]


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_neither_waits_nor_looks_at_the_clock(name: str) -> None:
    libraries = {module.split(".")[0] for module, _ in imports(MODULES[f"broker.{name}"])}
    assert sorted(libraries & IMPURE_LIBRARIES) == []


def test_the_public_names_can_be_imported_without_the_nats_client() -> None:
    assert "broker.transports.nats" not in imported_at_top(MODULES["broker.transports"])


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_tested_by_a_suite_of_its_name_or_a_named_one(name: str) -> None:
    short = name.removeprefix("services.environments_store.")
    named = [ROOT / "tests" / suite for suite, covered in SUITES.items() if short in covered.split()]
    expected = f"tests/{name.split('.')[0]}/test_{name.split('.')[-1]}.py"
    assert twins(name) or any(suite.exists() for suite in named), f"write {expected}, or name a suite in SUITES"


def test_every_named_suite_covers_modules_that_exist() -> None:
    known = {name.removeprefix("services.environments_store.") for name in MODULES}
    assert sorted(set(" ".join(SUITES.values()).split()) - known) == []


def twins(name: str) -> list[Path]:
    """Test files of a module's name: for `…database.sqlite` those are `test_sqlite.py` in the same folder of the
    tests, `test_database_sqlite.py`, or one that begins so."""
    parts = name.removeprefix("services.environments_store.").removeprefix("broker.").split(".")
    folder = ROOT / "tests" / name.split(".")[0]
    mirrored = folder.joinpath(*parts[:-1], f"test_{parts[-1]}.py")
    flat = folder / f"test_{'_'.join(parts)}.py"
    return [path for path in (mirrored, flat) if path.exists()]


def imported_at_top(path: Path) -> set[str]:
    """What a module imports when it is loaded, not later inside a function."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    top = [node for node in body if isinstance(node, ast.ImportFrom)]
    return {node.module or "" for node in top}
