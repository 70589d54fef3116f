"""Lists of endpoints choose as the reference says (protocol §9.1, §9.3)."""

from collections.abc import Sequence
from typing import Any

import pytest

from broker.context import Context
from broker.registry.endpoints import Endpoint, EndpointList
from broker.registry.strategies import RoundRobin
from broker.services.decorators import action
from broker.services.service import Service, define


class Posts(Service):
    name = "posts"

    @action(timeout=2.5)
    async def find(self, ctx: Context) -> None: ...


def remote(node_id: str, service: str = "posts", **info: Any) -> Endpoint:
    return Endpoint(node_id, "posts.find", service, info)


def local() -> Endpoint:
    definition = define(Posts()).actions["posts.find"]
    return Endpoint("py-1", "posts.find", "posts", definition.to_info(), definition)


def choices(*members: Endpoint, name: str = "posts.find", prefer_local: bool = True) -> EndpointList[Endpoint]:
    made: EndpointList[Endpoint] = EndpointList(name, RoundRobin(), prefer_local=prefer_local)
    for member in members:
        made.put(member)
    return made


def chosen(made: EndpointList[Endpoint], times: int, **options: Any) -> list[str | None]:
    found = [made.choose(**options) for _ in range(times)]
    return [endpoint.node_id if endpoint else None for endpoint in found]


def test_an_empty_list_chooses_nothing() -> None:
    assert choices().choose() is None
    assert choices().on_node("js-1") is None


def test_the_only_endpoint_is_chosen_if_it_is_available() -> None:
    only = remote("js-1")
    assert choices(only).choose() is only
    only.set_available(available=False)
    assert choices(only).choose() is None
    assert choices(only).on_node("js-1") is None


def test_c76_local_endpoints_come_first_by_default() -> None:
    made = choices(remote("js-1"), local(), remote("js-2"))
    assert chosen(made, 3) == ["py-1"] * 3
    made = choices(remote("js-1"), local(), remote("js-2"), prefer_local=False)
    assert chosen(made, 3) == ["js-1", "py-1", "js-2"]


def test_c76_a_local_endpoint_that_is_not_available_is_passed_over() -> None:
    own = local()
    own.set_available(available=False)
    assert chosen(choices(remote("js-1"), own, remote("js-2")), 3) == ["js-1", "js-2", "js-1"]


def test_c51_internal_actions_stay_on_the_own_node() -> None:
    own = local()
    made = choices(remote("js-1"), own, name="$node.list", prefer_local=False)
    assert chosen(made, 3) == ["py-1"] * 3
    own.set_available(available=False)
    assert chosen(made, 1) == [None]
    assert chosen(choices(remote("js-1"), remote("js-2"), name="$node.list"), 2) == ["js-1", "js-2"]


def test_putting_the_same_service_again_keeps_its_place() -> None:
    made = choices(remote("js-1"), remote("js-2"))
    renewed = remote("js-1", timeout=1)
    before = made.members[0]
    before.set_available(available=False)
    made.put(renewed)
    assert made.members[0] is before
    assert (before.timeout_s, before.available) == (0.001, False)
    assert [member.node_id for member in made.members] == ["js-1", "js-2"]
    made.put(remote("js-1", service="v2.posts"))
    assert len(made.members) == 3


def test_what_is_dropped_is_not_chosen_and_the_rest_keeps_its_order() -> None:
    made = choices(remote("js-1"), remote("js-2"), remote("js-1", service="v2.posts"), remote("js-3"))
    assert chosen(made, 1) == ["js-1"]
    made.drop(made.members[0])
    assert [member.node_id for member in made.members] == ["js-1", "js-2", "js-3"]
    assert chosen(made, 3) == ["js-2", "js-3", "js-1"]
    assert made.on_node("js-1") is made.members[0]


@pytest.mark.parametrize(
    ("announced", "expected"), [(3000, 3.0), (1500.5, 1.5005), (0, 0.0), (None, None), ("3s", None), (True, None)]
)
def test_c50_the_timeout_of_a_remote_action_is_in_milliseconds(announced: Any, expected: float | None) -> None:
    assert remote("js-1", timeout=announced).timeout_s == expected


def test_the_timeout_of_an_own_action_is_in_seconds() -> None:
    assert local().timeout_s == 2.5


def test_a_strategy_sees_only_what_is_usable() -> None:
    seen: list[list[str]] = []

    class Last:
        def choose(self, endpoints: Sequence[Any], ctx: Any) -> Any:
            seen.append([ctx, *(endpoint.node_id for endpoint in endpoints)])
            return endpoints[-1]

    made: EndpointList[Endpoint] = EndpointList("posts.find", Last())
    for number in (1, 2, 3):
        made.put(remote(f"js-{number}"))
    made.members[1].set_available(available=False)
    ctx: Any = "context"
    assert chosen(made, 1, ctx=ctx) == ["js-3"]
    assert seen == [["context", "js-1", "js-3"]]
