"""The problems that make an action or the migration unavailable, the most severe first.

Each function checks one aspect of an inspection and yields findings: what they make unavailable, why, and the remedy.
States, refused calls and the output of commands follow from this list; `findings.py` adds what is only worth knowing.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from services.environments_store.schema.inspection import ROW_NUMBER, Column, Inspection
from services.environments_store.schema.names import BASE_COLUMNS, COLUMN, qualified, quoted
from services.environments_store.schema.sql import TIMEOUTS, add_column, add_key
from services.environments_store.schema.status import ACTIONS, Capability, Finding, Reason

__all__ = ["faults_of", "listed", "obstacle_to_column", "table_name"]

ALL: tuple[Capability, ...] = ("migrate", "read", "list", "insert", "update", "soft-delete", "delete")
WRITES: tuple[Capability, ...] = ("insert", "update", "soft-delete", "delete")
KINDS = {"v": "a view", "m": "a materialised view", "p": "a partitioned table", "f": "a foreign table"}
NEEDED: dict[Capability, tuple[str, tuple[str, ...]]] = {
    "read": ("SELECT", BASE_COLUMNS),
    "insert": ("INSERT", BASE_COLUMNS),
    "update": ("UPDATE", ("environment", "timestamp", "updatedAt")),
    "soft-delete": ("UPDATE", ("updatedAt",)),
}
"""The privilege and its columns, besides `deletedAt` if it exists."""
BY_COMMAND: dict[str, tuple[Capability, ...]] = {
    "INSERT": ("insert",),
    "UPDATE": ("update", "soft-delete"),
    "DELETE": ("delete",),
}


def faults_of(found: Inspection) -> tuple[Finding, ...]:
    """All problems, the most severe first."""
    known = [one for about in _ABOUT for one in about(found)]
    taken = {capability for one in known for capability in one.takes}
    return (*known, *_about_refusals(found, taken))


def obstacle_to_column(found: Inspection) -> Finding | None:
    """What prevents this role from adding the column; None when it can try, or the column exists."""
    return next((one for one in faults_of(found) if "migrate" in one.takes), None)


def _about_place(found: Inspection) -> Iterator[Finding]:
    if found.kind is not None:
        return
    table, role, schema = quoted(found.table), quoted(found.role), quoted(found.schema)
    if found.hidden_in is not None and not (found.can_create or found.seen_in):
        hidden = quoted(found.hidden_in)
        yield _forbidden(
            f"Role {role} may not use schema {hidden}, which contains a table {table}.",
            f"As the owner of the schema run: GRANT USAGE ON SCHEMA {hidden} TO {role};",
            "The service may not use the schema of the table.",
            ALL,
        )
    elif found.no_schema:
        place = quoted(next(iter(found.seen_in), found.schema))
        yield _forbidden(
            f"The search_path of role {role} contains no existing schema that it may use, so it finds no table.",
            f"Run: ALTER ROLE {role} SET search_path = {place}; with the schema of the table.",
            "The search path of the service contains no existing schema.",
            ALL,
        )
    elif found.seen_in:
        yield _problem(
            "elsewhere",
            f"There is no table {table} in the search_path of role {role}, but there is one in schema"
            f" {listed(found.seen_in)}. The service does not create a second one.",
            f"Run: ALTER ROLE {role} SET search_path = {quoted(found.seen_in[0])}; or append"
            f" ?search_path={found.seen_in[0]} to DATABASE_URL; or pass --create-table, for an empty one in"
            f" schema {schema}.",
            "The table of the environments is in a schema outside the search path of the service.",
            ALL,
        )
    elif not found.writable:
        return  # reported below
    elif not found.can_create:
        yield _forbidden(
            f"There is no table {table}, and role {role} may not create it.",
            f"As the owner of the schema run: GRANT CREATE ON SCHEMA {schema} TO {role};",
            "There is no table of environments, and the service may not create it.",
            ALL,
        )


def _about_kind(found: Inspection) -> Iterator[Finding]:
    name, column = qualified(found.schema, found.table), found.deleted_at
    if found.kind is None:
        return
    if found.kind != "r":
        message = f"{name} is {KINDS.get(found.kind, 'not a table')}, which the service does not change."
        if found.dialect == "sqlite":
            takes = WRITES if found.has_column else ("migrate", *WRITES)
            yield _unsupported(message, None, "The table of the environments is a view and cannot be written.", takes)
        elif found.has_column:
            yield Finding(level="info", subject="unsupported", message=message)
        else:
            yield _unsupported(message, None, "The table of the environments is not an ordinary table.", ("migrate",))
    elif found.missing_columns:
        columns = ", ".join(map(quoted, found.missing_columns))
        yield _unsupported(
            f"{name} has no {columns}: it is not the table of the environments, and the service does not change it.",
            None,
            "The table lacks columns: it is not the table of the environments.",
            ALL,
        )
    elif column is not None and column.not_null:
        by_hand = f"As its owner run: ALTER TABLE {name} ALTER COLUMN {quoted(COLUMN)} DROP NOT NULL;"
        yield _unsupported(
            f"The column {quoted(COLUMN)} of {name} is NOT NULL, so no environment could be live.",
            "Make it nullable by hand." if found.dialect == "sqlite" else by_hand,
            "The column deletedAt is NOT NULL, so no environment could be live.",
            ("migrate", "soft-delete"),
        )
    elif column is not None and not found.has_column:
        yield _unsupported(
            f"The column {quoted(COLUMN)} of {name} has the type {column.type}, but must be a timestamp.",
            None,
            "The column deletedAt is not a timestamp.",
            ("migrate", "soft-delete"),
        )


def _about_writing(found: Inspection) -> Iterator[Finding]:
    if found.writable:
        return
    sqlite = found.dialect == "sqlite"
    reads_only = found.read_only_reason or (
        "The database is a standby."
        if found.standby
        else "The database is read-only: default_transaction_read_only is on for the server, the database or role"
        f" {quoted(found.role)}, as on some standbys and on some servers with a full disk."
    )
    when = "" if found.has_column else " The column is added once the database is writable."
    remedy = "Give the URL of the primary." if found.standby else "Turn it off, or give the URL of the primary."
    yield _problem(
        "read-only",
        f"{reads_only}{when}",
        "Let the service's user write to the file and its folder." if sqlite else remedy,
        "The database is read-only.",
        WRITES if found.has_column else ("migrate", *WRITES),
    )


def _about_owner(found: Inspection) -> Iterator[Finding]:
    if found.kind != "r" or found.has_column or found.can_alter or not found.writable:
        return
    name, role = qualified(found.schema, found.table), quoted(found.role)
    yield _forbidden(
        f"Role {role} does not own {name}, and may not add the column.",
        f"As its owner run: {TIMEOUTS} {add_column('postgresql', found.schema, found.table)}; or: ALTER TABLE {name}"
        f" OWNER TO {role}; `environments-store migrate sql` prints the whole script.",
        "The service may not add the column deletedAt: it does not own the table.",
        ("migrate",),
    )


def _about_rights(found: Inspection) -> Iterator[Finding]:
    if found.kind is None or found.missing_columns:
        return
    added = (COLUMN,) if found.has_column else ()
    takes: list[Capability] = [] if found.can_delete else ["delete"]
    rights: dict[str, None] = {}
    for capability, (privilege, columns) in NEEDED.items():
        wanted = columns if capability == "update" else (*columns, *added)
        missing = [column.name for column in found.columns if column.name in wanted and privilege in column.missing]
        if missing == [COLUMN] and capability == "read":
            takes += ["migrate", "soft-delete"]  # as without the column, every row counts as live
        elif missing and not (missing == [COLUMN] and not found.soft_delete):
            takes.append(capability)
        if missing:
            rights |= dict.fromkeys(_grants(found, privilege, missing))
    if not found.can_delete:
        rights["DELETE"] = None
    if not rights:
        return
    name, role = qualified(found.schema, found.table), quoted(found.role)
    grant = _joined_grants(list(rights))
    yield _problem(
        "forbidden",
        f"Role {role} has no {grant} on {name}.",
        f"As its owner run: GRANT {grant} ON {name} TO {role};",
        f"The service lacks privileges on the table, which affects {_actions(takes)}.",
        tuple(one for one in ALL if one in takes),
        subject="rights",
    )


def _about_row_security(found: Inspection) -> Iterator[Finding]:
    if not found.row_security:
        return
    name, role = qualified(found.schema, found.table), quoted(found.role)
    if found.row_security_off:
        yield _problem(
            "row-security",
            f"Row level security applies to {name}, and the setting row_security is off for role {role}: PostgreSQL"
            " refuses every statement.",
            f"ALTER ROLE {role} RESET row_security; or: ALTER ROLE {role} BYPASSRLS;",
            "Row level security and a setting of the database keep the service from every row.",
            ALL,
        )
    elif "SELECT" in found.without_policy:
        yield _problem(
            "row-security",
            f"Row level security hides all rows of {name} from role {role}: an empty list would look like an empty"
            " table.",
            f"Add a policy for the role, or run: ALTER ROLE {role} BYPASSRLS;",
            "Row level security hides all environments from the service.",
            ("read", *WRITES),
        )
    elif found.without_policy:
        commands, takes = found.without_policy, [one for c in found.without_policy for one in BY_COMMAND[c]]
        yield _problem(
            "row-security",
            f"Row level security has no policy for role {role} that allows {', '.join(commands)} on {name}.",
            " ".join(
                f"CREATE POLICY {quoted(f'environments_{c.lower()}')} ON {name} FOR {c} TO {role}"
                f" {'WITH CHECK' if c == 'INSERT' else 'USING'} (true);"
                for c in commands
            ),
            f"Row level security keeps the service from {_actions(takes)}.",
            tuple(takes),
        )
    else:
        yield _problem(
            "row-security",
            f"Row level security may hide rows of {name} from role {role}: an empty list need not mean an empty table.",
            f"Add a policy for the role, or run: ALTER ROLE {role} BYPASSRLS;",
            "Row level security decides which environments the service sees and changes.",
            level="warning",
        )


def _about_key(found: Inspection) -> Iterator[Finding]:
    if found.kind != "r" or found.missing_columns or found.has_key:
        return
    deferrable, primary = found.deferrable_keys, not found.has_primary_key
    key = add_key(found.dialect, found.schema, found.table, primary=primary, instead_of=deferrable)
    yield _problem(
        "no-key",
        f"{table_name(found)} has no primary key and no unique index on id that is checked immediately (a deferrable"
        " one is not): two environments could have the same id, and PostgreSQL refuses the service's INSERT.",
        f"As its owner run: {key}; but first, where `environments-store doctor` names duplicate ids, delete all rows"
        " but one of each.",
        "The table has no unique key on id, which `create` and `import` need.",
        ("insert",),
    )


def _about_columns(found: Inspection) -> Iterator[Finding]:
    if found.kind is None or found.missing_columns:
        return
    for column in found.columns:
        ours = column.name in (*BASE_COLUMNS, COLUMN)
        if ours and column.type == "uuid":
            yield _unsupported(
                f"The column {quoted(column.name)} of {table_name(found)} has the type uuid, but must be text.",
                f"As its owner run: {_alter(found)} ALTER COLUMN {quoted(column.name)} TYPE varchar(255); which"
                " rewrites the table and locks it meanwhile.",
                f"The column {column.name} has the type uuid, but must be text.",
                ("list", "insert"),
            )
        elif column.name == "id" and any(index.name == ROW_NUMBER for index in found.indexes):
            yield _unsupported(
                f"The column {quoted(column.name)} of {table_name(found)} is an INTEGER PRIMARY KEY, but must be text.",
                "Create the table again, with an id of type VARCHAR(255).",
                f"The column {column.name} contains numbers, but must be text.",
                ("insert",),
            )
        elif ours and column.generated:
            yield _about_generated(found, column)
        elif not ours and column.not_null and not column.filled:
            yield _unsupported(
                f"The column {quoted(column.name)} of {table_name(found)} is NOT NULL and has no default: the service"
                " has no value for it.",
                "Give it a default, or make it nullable, by hand."
                if found.dialect == "sqlite"
                else f"As its owner run: {_alter(found)} ALTER COLUMN {quoted(column.name)} DROP NOT NULL; or SET"
                " DEFAULT with a value.",
                "The table has a column that the service does not know and that needs a value.",
                ("insert",),
            )


def _about_generated(found: Inspection, column: Column) -> Finding:
    takes: list[Capability] = ["insert"]
    takes += ["update"] if column.name in NEEDED["update"][1] else []
    takes += ["soft-delete"] if column.name in ("updatedAt", COLUMN) else []
    how = "SET GENERATED BY DEFAULT" if column.generated == "identity" else "DROP EXPRESSION"
    by_hand = f"As its owner run: {_alter(found)} ALTER COLUMN {quoted(column.name)} {how};"
    return _unsupported(
        f"The column {quoted(column.name)} of {table_name(found)} is generated: no statement may set it.",
        by_hand if column.generated != "virtual" and found.dialect == "postgresql" else "Make it an ordinary column.",
        f"The column {column.name} is generated, so the service cannot set it.",
        tuple(takes),
    )


def _about_rules(found: Inspection) -> Iterator[Finding]:
    refused = set(found.refusals or ())
    for rule in found.rules:
        may_take: set[Capability] = {"insert"} if rule.event != "DELETE" else set()
        may_take |= set(BY_COMMAND[rule.event]) if rule.instead else set()
        takes = tuple(one for one in ALL if one in may_take & refused)
        message = f"The rule {quoted(rule.name)} of {table_name(found)} changes what {rule.event} does."
        if takes:
            yield _unsupported(
                f"{message} PostgreSQL therefore refuses the statements of {_actions(takes)}.",
                f"As its owner run: DROP RULE {quoted(rule.name)} ON {table_name(found)}; a trigger can replace it.",
                f"A rule of the database keeps the service from {_actions(takes)}.",
                takes,
            )
        else:
            yield Finding(level="info", subject="unsupported", message=message)


def _about_identity(found: Inspection) -> Iterator[Finding]:
    published = found.publication
    takes = [*(BY_COMMAND["UPDATE"] if published.updates else ()), *(BY_COMMAND["DELETE"] if published.deletes else ())]
    if published.identified or not takes or not published.names:
        return
    identity = "DEFAULT" if found.has_primary_key and found.has_key else "FULL"
    yield _problem(
        "replica-identity",
        f"{table_name(found)} is published by {listed(published.names)} and has no replica identity: PostgreSQL"
        " refuses changes whose row a subscriber could not identify.",
        f"As its owner run: {_alter(found)} REPLICA IDENTITY {identity};",
        f"The table is replicated without a replica identity, which {_actions(takes)} need.",
        tuple(takes),
    )


def _about_durability(found: Inspection) -> Iterator[Finding]:
    if found.unlogged:
        yield _problem(
            "unlogged",
            f"{table_name(found)} is UNLOGGED: a crash of the server empties it, and no standby has it.",
            f"As its owner run: {_alter(found)} SET LOGGED; which rewrites the table and locks it meanwhile.",
            "The table is UNLOGGED: a crash of the database empties it.",
            level="warning",
        )


_ABOUT = (
    *(_about_place, _about_kind, _about_writing, _about_owner, _about_row_security, _about_rights),
    *(_about_columns, _about_key, _about_rules, _about_identity, _about_durability),
)


def _about_refusals(found: Inspection, taken: set[Capability]) -> Iterator[Finding]:
    """Other reasons why PostgreSQL does not plan a statement. The message has PostgreSQL's own error, the public form
    has not."""
    for capability, refusal in (found.refusals or {}).items():
        if capability in taken or "read" in taken:
            continue
        actions = _actions([capability])
        message = f"The database refuses the statements of {actions} on {table_name(found)}: {refusal.message}."
        public = f"The database refuses the statements of {actions}: {_WHY.get(refusal.state, _WHY_ELSE)}."
        if refusal.state == "42501":
            remedy = f"As the owner of the object that it names, GRANT role {quoted(found.role)} the privilege."
            yield _forbidden(message, remedy, public, (capability,))
        else:
            yield _unsupported(message, "Change the table by hand.", public, (capability,))


_OF_TYPES = "a column of the table has an unsuitable type"
_WHY = {
    "42501": "the service lacks a privilege",
    "42804": _OF_TYPES,
    "42846": _OF_TYPES,
    "42883": _OF_TYPES,
    "42P10": "the table has no suitable unique key",
    "0A000": "a table of this kind does not support them",
    "55000": "a table of this kind does not support them",
}
_WHY_ELSE = "the table is not suitable for them"
"""The public reason by SQLSTATE, without roles and SQL."""


def _problem(
    reason: Reason,
    message: str,
    remedy: str | None,
    public: str,
    takes: tuple[Capability, ...] = (),
    *,
    subject: str = "",
    level: Literal["error", "warning"] = "error",
) -> Finding:
    return Finding(
        level=level,
        subject=subject or reason,
        reason=reason,
        message=message,
        remedy=remedy,
        public=public,
        takes=takes,
    )


_forbidden = partial(_problem, "forbidden")
_unsupported = partial(_problem, "unsupported")


def _grants(found: Inspection, privilege: str, missing: list[str]) -> list[str]:
    """A grant on the whole table when the role lacks the privilege on all columns, else on the columns."""
    if all(privilege in column.missing for column in found.columns):
        return [privilege]
    return [f"{privilege} ({quoted(name)})" for name in missing]


def _joined_grants(rights: list[str]) -> str:
    """`UPDATE ("a")` and `UPDATE ("b")` as one."""
    columns: dict[str, list[str]] = {}
    for right in rights:
        privilege, _, name = right.partition(" ")
        columns.setdefault(privilege, []).extend([name.strip("()")] if name else [])
    return ", ".join(f"{one} ({', '.join(names)})" if names else one for one, names in columns.items())


def _actions(takes: Sequence[Capability]) -> str:
    """The actions that need any of these, for a sentence."""
    if "read" in takes:
        return ACTIONS["read"][0]
    names = list(dict.fromkeys(f"`{name}`" for one in ACTIONS if one in takes for name in ACTIONS[one]))
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def table_name(found: Inspection) -> str:
    return quoted(found.table) if found.dialect == "sqlite" else qualified(found.schema, found.table)


def _alter(found: Inspection) -> str:
    return f"ALTER TABLE {table_name(found)}"
