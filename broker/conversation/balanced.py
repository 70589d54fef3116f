"""With `disable_balancer`, NATS balances: queue groups for actions and events (moleculer protocol §1.3, §5.7)."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from broker.protocol.packets import Command
from broker.protocol.topics import Topics


class BalancedSubscription(NamedTuple):
    """A subscription that nodes share."""

    command: Command
    subject: str
    queue: str


def balanced_subscriptions(topics: Topics, services: Iterable[dict[str, Any]]) -> Iterator[BalancedSubscription]:
    """What a node must listen to for the services of its INFO: for each, all actions, then all events."""
    for service in services:
        for action in service["actions"]:
            yield BalancedSubscription("REQ", topics.balanced_request(action), action)
        for event in service["events"].values():
            subject = topics.balanced_event(event["group"], subject_pattern(event["name"]))
            yield BalancedSubscription("EVENT", subject, event["group"])


def subject_pattern(pattern: str) -> str:
    """An event pattern as NATS can match it: everything from the first `**` on is `>`, a star alone stays one.

    It may match more than the pattern does; the receiver looks again.
    """
    before, stars, _ = pattern.partition("**")
    return f"{before}>" if stars else pattern
