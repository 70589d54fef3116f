"""Retries, breakers, bulkheads, fallbacks, caches and hooks between brokers, over memory and over NATS (§12)."""

from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from broker import (
    Context,
    MemoryCacher,
    Middleware,
    MoleculerError,
    MoleculerServerError,
    QueueIsFullError,
    RequestTimeoutError,
    Service,
    ServiceBroker,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    ValidationError,
    action,
    event,
)
from tests.support.cluster import Cluster
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.anyio

QUICK = {"enabled": True, "delay": 0.001, "max_delay": 0.001}


class Flaky(Service):
    """Fails as often as the test sets, and records each attempt."""

    name = "flaky"

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.seen: list[Context] = []

    def attempt(self, ctx: Context) -> str:
        self.seen.append(ctx)
        if self.failures:
            self.failures -= 1
            raise MoleculerServerError("flaky", 503)
        return self.broker.node_id

    @action
    async def plain(self, ctx: Context) -> str:
        return self.attempt(ctx)

    @action(retry_policy={**QUICK, "retries": 2})
    async def patient(self, ctx: Context) -> str:
        return self.attempt(ctx)

    @action(circuit_breaker={"enabled": True, "min_request_count": 2, "half_open_time": 0.05})
    async def guarded(self, ctx: Context) -> str:
        return self.attempt(ctx)

    @action(fallback="instead")
    async def excused(self, ctx: Context) -> str:
        return self.attempt(ctx)

    async def instead(self, ctx: Context, error: Exception) -> str:
        return f"{self.broker.node_id} after {error}"


class Relay(Service):
    name = "relay"

    @action
    async def forward(self, ctx: Context, action: str) -> Any:
        return await ctx.call(action)


# Retry


async def test_c77_a_retry_selects_a_node_again(cluster: Cluster) -> None:
    bad, good = Flaky(100), Flaky()
    caller, *_ = await cluster.start(("caller", []), ("bad", [bad]), ("good", [good]), retry_policy=QUICK)
    results = [await caller.call("flaky.plain", meta={"n": n}, request_id=f"r{n}") for n in range(4)]
    assert results == ["good"] * 4
    assert bad.seen
    failed = bad.seen[0]
    mended = next(ctx for ctx in good.seen if ctx.request_id == failed.request_id)
    assert (mended.meta, mended.level, mended.caller) == (failed.meta, failed.level, failed.caller)
    assert mended.id != failed.id


async def test_c77_only_the_first_attempt_is_bound_to_a_named_node(cluster: Cluster) -> None:
    bad = Flaky(100)
    caller, *_ = await cluster.start(("caller", []), ("bad", [bad]), ("good", [Flaky()]), retry_policy=QUICK)
    assert await caller.call("flaky.plain", node_id="bad", retries=5) == "good"


@pytest.mark.parametrize("owner_is_caller", [True, False])
async def test_c77_the_retry_policy_of_an_action_applies_to_every_caller(
    cluster: Cluster, owner_is_caller: bool
) -> None:
    flaky = Flaky(2)
    one, two = await cluster.start(("one", [flaky]), ("two", []))
    caller = one if owner_is_caller else two
    assert await caller.call("flaky.patient") == "one"
    assert len({ctx.id for ctx in flaky.seen}) == 3
    assert len({ctx.request_id for ctx in flaky.seen}) == 1
    flaky.failures = 3
    with pytest.raises(MoleculerServerError):
        await caller.call("flaky.patient")
    flaky.failures = 1
    with pytest.raises(MoleculerServerError):
        await caller.call("flaky.patient", retries=0)


async def test_c77_the_callee_does_not_retry_for_the_caller(cluster: Cluster) -> None:
    flaky = Flaky(100)
    owner = cluster.make("owner", [flaky], retry_policy=QUICK)
    await owner.start()
    caller = await cluster.start_one("caller")
    with pytest.raises(MoleculerServerError):
        await caller.call("flaky.plain")
    assert len(flaky.seen) == 1


async def test_c77_an_unknown_action_is_neither_retried_nor_replaced_by_a_fallback(cluster: Cluster) -> None:
    attempts: list[str] = []

    class Counting:
        async def call(self, call_next: Any, action: str, params: Any, options: Any) -> Any:
            attempts.append(action)
            return await call_next(action, params, options)

    broker = await cluster.start_one("one", retry_policy=QUICK, middlewares=[Counting()])
    with pytest.raises(ServiceNotFoundError):
        await broker.call("no.such", retries=3, fallback="instead")
    assert attempts == ["no.such"]


async def test_the_meta_of_every_attempt_comes_back(cluster: Cluster) -> None:
    class Marking(Service):
        name = "marking"
        tries = 0

        @action
        async def mark(self, ctx: Context) -> None:
            self.tries += 1
            ctx.meta[f"try{self.tries}"] = True
            if self.tries == 1:
                raise MoleculerServerError("again")

    _, caller = await cluster.start(("owner", [Marking()]), ("caller", []), retry_policy=QUICK)
    meta: dict[str, Any] = {}
    await caller.call("marking.mark", meta=meta)
    assert meta == {"try1": True, "try2": True}


# Circuit breaker


class Watching(Service):
    """Records the events of breakers."""

    name = "watching"

    def __init__(self) -> None:
        self.received: list[tuple[str, Any]] = []

    @event("$circuit-breaker.*")
    async def on_change(self, ctx: Context) -> None:
        assert ctx.event is not None
        self.received.append((ctx.event.removeprefix("$circuit-breaker."), ctx.params))


async def fail(broker: ServiceBroker, action: str, times: int) -> None:
    for _ in range(times):
        with pytest.raises(MoleculerServerError):
            await broker.call(action)


async def test_c66_c78_a_breaker_opens_half_opens_and_closes_and_each_change_is_broadcast(cluster: Cluster) -> None:
    flaky, watching = Flaky(2), Watching()
    breaker = {"enabled": True, "min_request_count": 2, "half_open_time": 0.1}
    await cluster.start(("owner", [flaky]), ("watcher", [watching]))
    caller = await cluster.start_one("caller", circuit_breaker=breaker)
    await fail(caller, "flaky.plain", 2)
    with pytest.raises(ServiceNotAvailableError):
        await caller.call("flaky.plain")
    with pytest.raises(ServiceNotFoundError):
        await caller.call("flaky.plain", node_id="owner")
    assert len(flaky.seen) == 2
    endpoint = caller.registry.actions["flaky.plain"].members[0]
    await eventually(lambda: endpoint.available, "the breaker to be half open")
    assert await caller.call("flaky.plain") == "owner"
    await eventually(lambda: len(watching.received) >= 3)
    about = {"nodeID": "owner", "service": "flaky", "action": "flaky.plain"}
    assert watching.received == [
        ("opened", about | {"failures": 2, "count": 2, "rate": 1}),
        ("half-opened", about),
        ("closed", about),
    ]


async def test_c76_an_endpoint_with_an_open_breaker_is_not_selected(cluster: Cluster) -> None:
    breaker = {"enabled": True, "min_request_count": 1, "half_open_time": 60}
    bad, good = Flaky(100), Flaky()
    caller, *_ = await cluster.start(("caller", []), ("bad", [bad]), ("good", [good]), circuit_breaker=breaker)
    outcomes = []
    for _ in range(10):
        try:
            outcomes.append(await caller.call("flaky.plain"))
        except MoleculerServerError:
            outcomes.append("failed")
    assert sorted(outcomes) == ["failed"] + ["good"] * 9


async def test_c78_the_state_of_a_breaker_survives_a_new_announcement_of_its_service(cluster: Cluster) -> None:
    breaker = {"enabled": True, "min_request_count": 1, "half_open_time": 60}
    owner, caller = await cluster.start(("owner", [Flaky(100)]), ("caller", []), circuit_breaker=breaker)
    await fail(caller, "flaky.plain", 1)
    await owner.add_service(Relay())
    await caller.wait_for_services("relay")
    with pytest.raises(ServiceNotAvailableError):
        await caller.call("flaky.plain")


async def test_c78_the_breaker_of_an_owner_counts_the_calls_of_other_nodes(cluster: Cluster) -> None:
    flaky = Flaky(100)
    owner, caller = await cluster.start(("owner", [flaky]), ("caller", []))
    await fail(owner, "flaky.guarded", 2)
    with pytest.raises(ServiceNotAvailableError):
        await owner.call("flaky.guarded")
    with pytest.raises(ServiceNotAvailableError) as refused:
        await caller.call("flaky.guarded")
    assert refused.value.data == {"action": "flaky.guarded", "nodeID": "owner"}


async def test_c78_an_error_that_came_from_a_third_node_is_not_counted(cluster: Cluster) -> None:
    breaker = {"enabled": True, "min_request_count": 1, "half_open_time": 60}
    caller = cluster.make("caller", circuit_breaker=breaker)
    await caller.start()
    await cluster.start(("relay", [Relay()]), ("third", [Flaky(100)]))
    for _ in range(3):
        with pytest.raises(MoleculerServerError) as failed:
            await caller.call("relay.forward", {"action": "flaky.plain"})
        assert failed.value.node_id == "third"


async def test_c78_c81_without_the_balancer_results_count_for_the_node_that_answered(cluster: Cluster) -> None:
    breaker = {"enabled": True, "min_request_count": 5, "half_open_time": 60}
    nodes, watching = {"one": Flaky(100), "two": Flaky(100)}, Watching()
    await cluster.start(*((node_id, [flaky]) for node_id, flaky in nodes.items()), disable_balancer=True)
    caller = await cluster.start_one("caller", [watching], circuit_breaker=breaker, disable_balancer=True)
    opened: dict[str, int] = {}
    while len(opened) < 2:
        await fail(caller, "flaky.plain", 1)
        for node_id, flaky in nodes.items():
            if not caller.registry.actions["flaky.plain"].on_node(node_id):
                opened.setdefault(node_id, len(flaky.seen))
    assert opened == {"one": 5, "two": 5}
    with pytest.raises(ServiceNotAvailableError):
        await caller.call("flaky.plain")
    await eventually(lambda: len(watching.received) == 2)
    assert {(name, data["nodeID"], data["count"]) for name, data in watching.received} == {
        ("opened", "one", 5),
        ("opened", "two", 5),
    }


async def test_timeouts_open_a_breaker(cluster: Cluster) -> None:
    class Silent(Service):
        name = "silent"

        @action
        async def wait(self, ctx: Context) -> None:
            await anyio.sleep_forever()

    breaker = {"enabled": True, "min_request_count": 2, "half_open_time": 60}
    _, caller = await cluster.start(("owner", [Silent()]), ("caller", []), circuit_breaker=breaker)
    for _ in range(2):
        with pytest.raises(RequestTimeoutError):
            await caller.call("silent.wait", timeout=0.02)
    with pytest.raises(ServiceNotAvailableError):
        await caller.call("silent.wait", timeout=0.02)


# Bulkhead


class Narrow(Service):
    name = "narrow"

    def __init__(self) -> None:
        self.inside = self.most = self.done = 0
        self.received: list[Any] = []
        self.opened = anyio.Event()

    async def stay(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.opened.wait()
        self.inside -= 1
        self.done += 1

    @action(bulkhead={"enabled": True, "concurrency": 2, "max_queue_size": 3})
    async def pass_through(self, ctx: Context) -> None:
        await self.stay()

    @event("narrow.event", bulkhead={"enabled": True, "concurrency": 1, "max_queue_size": 2})
    async def on_event(self, ctx: Context) -> None:
        await self.stay()
        self.received.append(ctx.params)


async def test_c79_a_bulkhead_runs_and_queues_up_to_its_limits_and_refuses_the_rest(cluster: Cluster) -> None:
    narrow = Narrow()
    _, caller = await cluster.start(("owner", [narrow]), ("caller", []))
    refused: list[QueueIsFullError] = []

    async def call() -> None:
        try:
            await caller.call("narrow.pass_through")
        except QueueIsFullError as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(9):
            tasks.start_soon(call)
        await eventually(lambda: len(refused) == 4)
        narrow.opened.set()
    assert (narrow.most, narrow.done) == (2, 5)
    assert refused[0].data == {"action": "narrow.pass_through", "nodeID": "caller", "size": 3, "limit": 3}


async def test_c79_a_bulkhead_limits_events_too(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    narrow = Narrow()
    _, sender = await cluster.start(("owner", [narrow]), ("sender", []))
    for number in range(5):
        await sender.emit("narrow.event", number)
    await eventually(lambda: caplog.text.count("Queue is full") == 2)
    narrow.opened.set()
    await eventually(lambda: narrow.received == [0, 1, 2])
    assert narrow.most == 1


# Fallback


async def test_c79_the_fallback_of_an_action_runs_at_its_owner(cluster: Cluster) -> None:
    one, two = await cluster.start(("one", [Flaky(100)]), ("two", []))
    assert await one.call("flaky.excused") == await two.call("flaky.excused") == "one after flaky"
    assert "fallback" not in two.registry.actions["flaky.excused"].members[0].info


async def test_c79_the_fallback_of_a_call_runs_after_the_retries(cluster: Cluster) -> None:
    flaky = Flaky(100)
    _, caller = await cluster.start(("owner", [flaky]), ("caller", []), retry_policy={**QUICK, "retries": 2})

    def instead(ctx: Context, error: Exception) -> list[Any]:
        return [ctx.action, str(error), ctx.meta]

    assert await caller.call("flaky.plain", fallback=instead, meta={"m": 1}) == ["flaky.plain", "flaky", {"m": 1}]
    assert len(flaky.seen) == 3


# Cacher


class Books(Service):
    name = "books"

    def __init__(self) -> None:
        self.runs = 0

    @action(cache={"keys": ["id", "#user"], "ttl": 60})
    async def get(self, ctx: Context, id: int, other: int = 0) -> int:
        self.runs += 1
        return self.runs

    @action(cache=True)
    async def all(self, ctx: Context) -> int:
        self.runs += 1
        return self.runs


async def test_an_owner_answers_every_caller_from_its_cache(cluster: Cluster) -> None:
    books = Books()
    owner = cluster.make("owner", [books], cacher=True)
    await owner.start()
    caller = await cluster.start_one("caller")
    for broker in (caller, owner):
        assert await broker.call("books.get", {"id": 1, "other": len(broker.node_id)}) == 1
    assert await caller.call("books.get", {"id": 2}) == 2
    assert await caller.call("books.get", {"id": 1}, meta={"user": "ada"}) == 3
    assert await caller.call("books.get", {"id": 1}, meta={"$cache": False}) == 4
    assert owner.cacher is not None
    assert owner.cacher.keys() == ["books.get:1|undefined", "books.get:2|undefined", 'books.get:1|"ada"']
    owner.cacher.clean("books.get:1**")
    assert await caller.call("books.get", {"id": 1}) == 5
    assert await caller.call("books.get", {"id": 2}) == 2
    info = caller.registry.actions["books.get"].members[0].info
    assert info["cache"] == {"keys": ["id", "#user"], "ttl": 60}


async def test_a_hit_bypasses_validation_and_hooks(cluster: Cluster) -> None:
    class Hooked(Books):
        hooks: Mapping[str, Any] = {"before": {"all": "note"}}
        notes = 0

        async def note(self, ctx: Context) -> None:
            self.notes += 1

    hooked = Hooked()
    broker = await cluster.start_one("one", [hooked], cacher={"ttl": 60})
    assert [await broker.call("books.all") for _ in range(3)] == [1, 1, 1]
    assert hooked.notes == 1


async def test_a_stale_result_is_returned_at_once_and_refreshed(cluster: Cluster) -> None:
    class Numbers(Service):
        name = "numbers"
        made = 0

        @action(cache={"ttl": 60, "lock": {"stale_time": 50}})
        async def make(self, ctx: Context) -> int:
            self.made += 1
            return self.made

    numbers, now = Numbers(), 0.0
    owner = cluster.make("owner", [numbers], cacher=MemoryCacher(clock=lambda: now))
    await owner.start()
    caller = await cluster.start_one("caller")
    assert [await caller.call("numbers.make") for _ in range(2)] == [1, 1]
    now = 15.0
    assert await caller.call("numbers.make", timeout=DEADLINE_S) == 1
    await eventually(lambda: numbers.made == 2, "a new result")
    assert await caller.call("numbers.make") == 2


async def test_without_a_cacher_nothing_is_cached(cluster: Cluster) -> None:
    broker = await cluster.start_one("one", [Books()])
    assert [await broker.call("books.all") for _ in range(3)] == [1, 2, 3]
    assert broker.cacher is None


async def test_the_cache_is_cleared_after_a_reconnect(cluster: Cluster) -> None:
    broker = cluster.make("one", [Books()], cacher=True)
    assert broker.cacher is not None
    broker.cacher.set("old", 1)
    await broker.start()
    assert broker.cacher.keys() == []


# Hooks and users' middlewares


class Typed(Service):
    name = "typed"
    hooks: Mapping[str, Any] = {
        "before": {"*": "first", "double": "more"},
        "after": {"*": "report"},
        "error": {"*": "explain"},
    }

    def __init__(self) -> None:
        self.hooked: list[Any] = []

    @action(hooks={"before": "last"})
    async def double(self, ctx: Context, number: int) -> int:
        if number < 0:
            raise MoleculerError("negative")
        return number * 2

    async def first(self, ctx: Context) -> None:
        self.hooked.append(("first", ctx.params, ctx.service_name))

    async def more(self, ctx: Context) -> None:
        ctx.params["number"] += 1

    async def last(self, ctx: Context) -> None:
        self.hooked.append(("last", ctx.params))

    async def report(self, ctx: Context, result: int) -> dict[str, int]:
        return {"result": result}

    async def explain(self, ctx: Context, error: Exception) -> Any:
        raise MoleculerError(f"explained: {error}") from error


async def test_hooks_run_around_an_action_and_can_change_its_params(cluster: Cluster) -> None:
    typed = Typed()
    one, two = await cluster.start(("one", [typed]), ("two", []))
    for broker in (one, two):
        typed.hooked.clear()
        assert await broker.call("typed.double", {"number": 3}) == {"result": 8}
        assert typed.hooked == [("first", {"number": 4}, "typed"), ("last", {"number": 4})]
        with pytest.raises(MoleculerError, match="explained: negative"):
            await broker.call("typed.double", {"number": -5})


async def test_invalid_params_never_reach_the_hooks(cluster: Cluster) -> None:
    typed = Typed()
    one, two = await cluster.start(("one", [typed]), ("two", []))
    for broker in (one, two):
        with pytest.raises(ValidationError):
            await broker.call("typed.double", {"number": "three"})
    assert typed.hooked == []


class Everything:
    """Records every hook call."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def note(self, what: str) -> None:
        self.notes.append(f"{self.name}: {what}")

    def created(self, broker: ServiceBroker) -> None:
        self.note(f"created {broker.node_id}")

    async def starting(self, broker: ServiceBroker) -> None:
        self.note("starting")

    async def service_starting(self, service: Service) -> None:
        self.note(f"starting {service.full_name}")

    async def service_started(self, service: Service) -> None:
        self.note(f"started {service.full_name}")

    async def started(self, broker: ServiceBroker) -> None:
        self.note("started")

    async def call(self, call_next: Any, action: str, params: Any, options: Any) -> Any:
        self.note(f"call {action}")
        return await call_next(action, params, options)

    async def remote_action(self, call_next: Any, ctx: Context) -> Any:
        self.note(f"remote {ctx.action}")
        return await call_next(ctx)

    async def local_action(self, call_next: Any, ctx: Context) -> Any:
        self.note(f"local {ctx.action}")
        return await call_next(ctx)

    async def local_event(self, call_next: Any, ctx: Context) -> Any:
        self.note(f"handle {ctx.event}")
        return await call_next(ctx)

    async def emit(self, call_next: Any, event: str, data: Any, options: Any) -> None:
        self.note(f"emit {event}")
        await call_next(event, data, options)

    async def broadcast(self, call_next: Any, event: str, data: Any, options: Any) -> None:
        self.note(f"broadcast {event}")
        await call_next(event, {"changed": data}, options)

    async def stopping(self, broker: ServiceBroker) -> None:
        self.note("stopping")

    async def service_stopping(self, service: Service) -> None:
        self.note(f"stopping {service.full_name}")

    async def service_stopped(self, service: Service) -> None:
        self.note(f"stopped {service.full_name}")

    async def stopped(self, broker: ServiceBroker) -> None:
        self.note("stopped")


class Listener(Service):
    name = "listener"

    def __init__(self) -> None:
        self.received: list[Any] = []

    @event("news.*")
    async def on_news(self, ctx: Context) -> None:
        self.received.append((ctx.event, ctx.params))

    @action
    async def pardon(self, ctx: Context) -> str:
        return "yes"


async def test_the_hooks_of_middlewares_run_in_order(cluster: Cluster) -> None:
    notes: list[str] = []
    listener = Listener()
    other = cluster.make("other", [Flaky()])
    await other.start()
    everything = [Everything("outer", notes), Everything("inner", notes)]
    broker = cluster.make("one", [listener], middlewares=everything, internal_services=False)
    await broker.start()
    await cluster.wait_until_connected()
    assert notes == [
        *("outer: created one", "inner: created one"),
        *("outer: starting", "inner: starting"),
        *("outer: starting listener", "inner: starting listener", "outer: started listener", "inner: started listener"),
        *("outer: started", "inner: started"),
    ]
    notes.clear()
    await broker.call("flaky.plain")
    await broker.call("listener.pardon")
    assert await other.call("listener.pardon") == "yes"
    assert notes == [
        *("outer: call flaky.plain", "inner: call flaky.plain", "outer: remote flaky.plain"),
        *("inner: remote flaky.plain", "outer: call listener.pardon", "inner: call listener.pardon"),
        *("outer: local listener.pardon", "inner: local listener.pardon") * 2,
    ]
    notes.clear()
    await broker.emit("news.one", 1)
    await broker.broadcast("news.all", 2)
    await eventually(lambda: len(listener.received) == 2)
    assert listener.received == [("news.one", 1), ("news.all", {"changed": {"changed": 2}})]
    assert [note for note in notes if "inner" not in note] == [
        *("outer: emit news.one", "outer: broadcast news.all", "outer: handle news.one", "outer: handle news.all")
    ]
    notes.clear()
    await broker.stop()
    assert notes == [
        *("inner: stopping", "outer: stopping", "inner: stopping listener", "outer: stopping listener"),
        *("inner: stopped listener", "outer: stopped listener", "inner: stopped", "outer: stopped"),
    ]


async def test_an_error_handler_sees_every_error_of_calls_and_events(cluster: Cluster) -> None:
    class Bad(Service):
        name = "bad"

        @action
        async def act(self, ctx: Context) -> None:
            raise ValueError("act")

        @event("bad.event")
        async def on_event(self, ctx: Context) -> None:
            raise ValueError("event")

    seen: list[str] = []

    async def handle(error: BaseException, ctx: Context) -> str:
        seen.append(f"{ctx.action or ctx.event}: {error}")
        return "handled"

    owner = cluster.make("owner", [Bad()], error_handler=handle)
    await owner.start()
    caller = await cluster.start_one("caller")
    assert await owner.call("bad.act") == await caller.call("bad.act") == "handled"
    await caller.emit("bad.event")
    await eventually(lambda: len(seen) == 3)
    assert seen == ["bad.act: act", "bad.act: act", "bad.event: event"]


async def test_a_service_with_an_invalid_setting_is_refused(cluster: Cluster) -> None:
    class Wrong(Service):
        name = "wrong"

        @action(retry_policy={"tries": 3})
        async def act(self, ctx: Context) -> None: ...

    with pytest.raises(MoleculerError, match=r"wrong.*tries"):
        cluster.make("one", [Wrong()])


# Debounce and throttle


class Bursts(Service):
    name = "bursts"

    def __init__(self) -> None:
        self.late: list[Any] = []
        self.early: list[Any] = []
        self.all: list[Any] = []

    @event("burst", debounce=0.05)
    async def last(self, ctx: Context) -> None:
        self.late.append(ctx.params)

    @event("bur*", throttle=60)
    async def first(self, ctx: Context) -> None:
        self.early.append(ctx.params)

    @event("**")
    async def every(self, ctx: Context) -> None:
        if ctx.event == "burst":
            self.all.append(ctx.params)


async def test_debounce_handles_the_last_event_of_a_burst_and_throttle_the_first(cluster: Cluster) -> None:
    bursts = Bursts()
    _, sender = await cluster.start(("owner", [bursts]), ("sender", []))
    for number in range(5):
        await sender.emit("burst", number)
    await eventually(lambda: bursts.late)
    assert (bursts.late, bursts.early, bursts.all) == ([4], [0], [0, 1, 2, 3, 4])
    (handlers,) = [info["events"] for info in sender.registry.nodes["owner"].services if info["name"] == bursts.name]
    assert (handlers["burst"]["debounce"], handlers["bur*"]["throttle"]) == (50, 60_000)


class Farewells(Service):
    name = "farewells"

    def __init__(self) -> None:
        self.open = False
        self.handled_while_open: list[bool] = []

    async def started(self) -> None:
        self.open = True

    async def stopped(self) -> None:
        self.open = False

    @event("farewell", debounce=0.02)
    async def on_farewell(self, ctx: Context) -> None:
        self.handled_while_open.append(self.open)


async def test_a_debounced_event_does_not_run_after_its_service_has_stopped(cluster: Cluster) -> None:
    farewells, bursts = Farewells(), Bursts()
    node = await cluster.start_one("one", [farewells, bursts])
    await node.emit("farewell")
    await node.emit("farewell")
    await node.remove_service(farewells)
    await node.emit("burst", "later")
    await eventually(lambda: bursts.late)
    assert farewells.handled_while_open in ([], [True])


# What a stop waits for


class Slow(Service):
    name = "slow"

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self.door = anyio.Event()

    async def work(self, name: str) -> None:
        self.begun.append(name)
        await self.door.wait()
        self.done.append(name)

    @action
    async def act(self, ctx: Context) -> str:
        await self.work("action")
        return "done"

    @event("slow.event")
    async def on_event(self, ctx: Context) -> None:
        await self.work("event")

    async def stopped(self) -> None:
        self.done.append("stopped")


async def test_a_stop_waits_for_local_calls_and_event_handlers(cluster: Cluster) -> None:
    slow = Slow()
    broker = await cluster.start_one("one", [slow])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.call, "slow.act")
        await broker.emit("slow.event")
        await eventually(lambda: len(slow.begun) == 2)
        tasks.start_soon(broker.stop)
        await eventually(lambda: broker._node.transit.stopping)
        assert slow.done == []
        slow.door.set()
    assert sorted(slow.done[:2]) == ["action", "event"]
    assert slow.done[2:] == ["stopped"]


async def test_a_stop_waits_for_calls_to_other_nodes(cluster: Cluster) -> None:
    slow = Slow()
    _, caller = await cluster.start(("owner", [slow]), ("caller", []))
    results: list[str] = []

    async def call() -> None:
        results.append(await caller.call("slow.act"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await eventually(lambda: slow.begun)
        tasks.start_soon(caller.stop)
        await eventually(lambda: caller._node.transit.stopping)
        slow.door.set()
    assert results == ["done"]


async def test_a_stop_waits_for_a_limited_time_and_logs_it(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    broker = await cluster.start_one("one", [slow], shutdown_timeout=0.05)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.call, "slow.act")
        await broker.emit("slow.event")
        await eventually(lambda: len(slow.begun) == 2)
        await broker.stop()
        assert slow.done == ["stopped"]
        assert "Unable to stop ServiceBroker gracefully." in caplog.text
        slow.door.set()


async def test_a_removed_service_finishes_its_calls_and_events(cluster: Cluster) -> None:
    slow = Slow()
    owner, caller = await cluster.start(("owner", [slow]), ("caller", []))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.call, "slow.act")
        await owner.emit("slow.event")
        await eventually(lambda: len(slow.begun) == 2)
        tasks.start_soon(owner.remove_service, "slow")
        await eventually(lambda: not owner.registry.has_service("slow"))
        assert slow.done == []
        slow.door.set()
    assert slow.done[-1] == "stopped"
    assert len(slow.done) == 3


async def test_a_service_that_does_not_finish_is_removed_anyway(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow()
    owner = await cluster.start_one("owner", [slow], shutdown_timeout=0.05)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.call, "slow.act")
        await eventually(lambda: slow.begun)
        await owner.remove_service("slow")
        assert slow.done == ["stopped"]
        assert "Unable to stop 'slow' service gracefully." in caplog.text
        slow.door.set()


async def test_a_middleware_that_fails_at_a_breaker_event_does_not_stop_its_node(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(Middleware):
        async def broadcast(self, call_next: Any, event: str, data: Any, options: Mapping[str, Any]) -> None:
            raise ValueError(f"no {event}")

    await cluster.start_one("owner", [Flaky(failures=2)], middlewares=[Refusing()])
    caller = await cluster.start_one("caller")
    for _ in range(2):
        with pytest.raises(MoleculerError):
            await caller.call("flaky.guarded", retries=0)
    await eventually(lambda: "no $circuit-breaker.opened" in caplog.text, "the logged error")
    assert await caller.call("$node.list", node_id="owner")
