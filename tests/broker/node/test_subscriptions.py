"""What a node subscribes to when NATS balances (protocol §1.3)."""

import pytest

from broker import Context, Service, action, event
from broker.node.subscriptions import balanced_subscriptions
from broker.protocol.topics import Topics
from broker.services.service import define


class Greeter(Service):
    name = "greeter"
    version = 1

    @action
    async def hello(self, ctx: Context) -> None: ...

    @action(visibility="protected")
    async def guarded(self, ctx: Context) -> None: ...

    @action(visibility="private")
    async def own(self, ctx: Context) -> None: ...

    @event("user.created")
    async def on_created(self, ctx: Context) -> None: ...

    @event("user.*", group="mail")
    async def on_user(self, ctx: Context) -> None: ...

    @event("order.**")
    async def on_order(self, ctx: Context) -> None: ...


def test_c80_every_action_but_private_ones_and_every_event_is_shared_in_a_queue_group() -> None:
    info = define(Greeter()).to_info()
    assert [tuple(item) for item in balanced_subscriptions(Topics(), [info])] == [
        ("REQ", "MOL.REQB.v1.greeter.hello", "v1.greeter.hello"),
        ("REQ", "MOL.REQB.v1.greeter.guarded", "v1.greeter.guarded"),
        ("EVENT", "MOL.EVENTB.greeter.user.created", "greeter"),
        ("EVENT", "MOL.EVENTB.mail.user.*", "mail"),
        ("EVENT", "MOL.EVENTB.greeter.order.>", "greeter"),
    ]


def test_c80_subjects_carry_the_namespace() -> None:
    info = define(Greeter()).to_info()
    assert next(balanced_subscriptions(Topics("prod"), [info])).subject == "MOL-prod.REQB.v1.greeter.hello"


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [("order.**", "order.>"), ("**", ">"), ("a.**.z", "a.>"), ("user.*", "user.*"), ("pre*.k", "pre*.k"), ("a", "a")],
)
def test_c80_patterns_become_what_nats_can_match(pattern: str, subject: str) -> None:
    info = {"actions": {}, "events": {pattern: {"name": pattern, "group": "g"}}}
    (shared,) = balanced_subscriptions(Topics(), [info])
    assert shared.subject == f"MOL.EVENTB.g.{subject}"
