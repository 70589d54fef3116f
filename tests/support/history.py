"""Histories of concurrent calls, and whether any order of them explains every answer: linearizability, for each uuid.

An environment is absent, live with a document, or in the trash with one. Each call takes effect at one moment between
its start and its answer; one whose outcome its caller does not know may take effect at any later moment, or never. The
search is that of Wing and Gong: among the calls that began before the first answer still to be explained, one is the
next, in every way that its answer fits; states already met are not searched again.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

import msgspec

from broker import MoleculerError
from services.environments_store.hash import content_hash

__all__ = ["Call", "History", "is_linearizable"]

Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]

NOT_FOUND = "ENVIRONMENT_NOT_FOUND"
OK = "ok"
UNKNOWN = "unknown"


class Call(NamedTuple):
    """`document` is what it writes, `seen` what the caller compares with; both are numbers. `answer` is `ok`, an
    error's type, or `unknown`, and `found` the number of the document in it."""

    action: str
    document: int
    seen: int
    called: float
    answered: float
    answer: str
    found: int = 0


def is_linearizable(calls: Sequence[Call]) -> bool:
    """Whether the calls of one uuid, which nothing held before, have an order that explains them."""
    everything = (1 << len(calls)) - 1
    open_, met = [(everything, 0)], set[tuple[int, int]]()
    while open_:
        left, state = open_.pop()
        if (left, state) in met:
            continue
        met.add((left, state))
        waiting = [number for number in range(len(calls)) if left >> number & 1]
        first_answer = min((calls[number].answered for number in waiting), default=math.inf)
        if first_answer == math.inf:
            return True  # what is left need never have happened
        for number in waiting:
            after = _after(state, calls[number]) if calls[number].called < first_answer else None
            if after is not None:
                open_.append((left ^ 1 << number, after))
    return False


def _after(state: int, call: Call) -> int | None:
    """The state after a call with this answer, None where it cannot have been given. A state is the number of the
    document of a live environment, its negative in the trash, and 0 for none."""
    live, deleted = state > 0, state < 0
    if call.answer in (OK, UNKNOWN):
        match call.action:
            case "create":
                return call.document if state == 0 else None
            case "get":
                return state if live and state == call.found else None
            case "update":
                return call.document if live and call.seen in (0, state) else None
            case "remove":
                return -abs(state) if state else None
            case "restore":
                return abs(state) if state else None
            case "permanentDelete":
                return 0 if deleted else None
            case "permanentDelete by force":
                return 0 if state else None
            case "look":
                return state if state == call.found else None
    fits = {
        (True, "ENVIRONMENT_EXISTS"): live,
        (True, "ENVIRONMENT_DELETED"): deleted,
        (True, "ENVIRONMENT_NOT_DELETED"): live,
        (True, "ENVIRONMENT_CHANGED"): live and state == call.found != call.seen,
        (call.action in ("get", "update"), NOT_FOUND): not live,
        (call.action not in ("get", "update"), NOT_FOUND): state == 0,
    }
    return state if fits.get((True, call.answer)) else None


class History:
    """What callers did and were told, by uuid."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        self._moments = count(1)
        self._documents = count(1)
        self._numbers: dict[str, int] = {}
        self._hashes: dict[int, str] = {}
        self._seen: dict[str, int] = {}

    async def call(self, ask: Ask, action: str, uuid: str) -> None:
        """Make one call. `update if hash` compares with what was seen of this uuid last."""
        name, compare, _ = action.partition(" if hash")
        name, force, _ = name.partition(" by force")
        params: dict[str, Any] = {"force": True} if force else {}
        if name != "create":
            params["uuid"] = uuid
        document = 0
        if name in ("create", "update"):
            document = next(self._documents)
            params["environment"] = {"uuid": uuid, "number": document}
            hash = content_hash(msgspec.json.encode(params["environment"]))
            self._numbers[hash], self._hashes[document] = document, hash
        seen = self._seen.get(uuid, 0) if compare else 0
        if seen:
            params["ifHash"] = self._hashes[seen]
        called = next(self._moments)
        answer, found = OK, 0
        try:
            result = await ask(name, params)
        except MoleculerError as error:
            answer, found = self._refusal(error, action)
        else:
            if "environment" in result:
                self._seen[uuid] = found = result["environment"]["number"]
        answered = math.inf if answer == UNKNOWN else next(self._moments)
        if answer != UNKNOWN or name != "get":
            self._add(uuid, Call(name + force, document, seen, called, answered, answer, found))

    async def look(self, ask: Ask, uuids: Sequence[str]) -> None:
        """Add what the lists show, while no other calls are made."""
        called = next(self._moments)
        states = dict.fromkeys(uuids, 0)
        for action, sign in (("list", 1), ("listDeleted", -1)):
            for record in await ask(action, {"fields": ["id", "environment"]}):
                states[record["id"]] = sign * record["environment"]["number"]
        for uuid in uuids:
            self._add(uuid, Call("look", 0, 0, called, next(self._moments), OK, states[uuid]))

    def broken(self) -> str:
        """The calls of the uuids that no order explains, as text."""
        return "\n".join(
            f"{uuid}:\n" + "\n".join(f"  {call}" for call in calls)
            for uuid, calls in self.calls.items()
            if not is_linearizable(calls)
        )

    def _refusal(self, error: MoleculerError, action: str) -> tuple[str, int]:
        kind = str(error.type)
        if not kind.startswith("ENVIRONMENT_"):
            assert error.retryable, f"{action}: {error.code} {kind} {error}"
            return UNKNOWN, 0
        return kind, self._numbers[error.data["hash"]] if kind == "ENVIRONMENT_CHANGED" else 0

    def _add(self, uuid: str, call: Call) -> None:
        self.calls.setdefault(uuid, []).append(call)
