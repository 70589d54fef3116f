"""What a service inherits from its bases is merged, as Moleculer merges mixins."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from broker.context import Context
from broker.errors import ServiceSchemaError
from broker.middlewares.handler import make_listener
from broker.services.decorators import action, event
from broker.services.inheritance import merge_declared
from broker.services.service import Service, define


class Limits(Service):
    """A mixin that is a service."""

    settings: Mapping[str, Any] = {"limits": {"size": 10, "rate": 5}, "$secureSettings": ["a.key"], "list": [1]}
    metadata: ClassVar[dict[str, Any]] = {"team": "one", "zone": "z1"}
    dependencies: ClassVar[Any] = ("users",)

    @action
    async def limits(self, ctx: Context) -> Any:
        return self.settings["limits"]


class Paging:
    """A mixin that is none."""

    settings: Mapping[str, Any] = {"limits": {"page": 50}, "a": {"key": "hidden", "name": "shown"}}
    dependencies: ClassVar[Any] = "pages"


class Posts(Limits, Paging):
    name = "posts"
    settings: Mapping[str, Any] = {"limits": {"size": 99}, "b": "hidden", "$secureSettings": ["b"], "list": [2]}
    metadata = {"team": "two"}  # noqa: RUF012 - as users write it
    dependencies = ("users", {"name": "mail", "version": 2})


class Drafts(Posts):
    name = "drafts"


def test_settings_are_merged_to_any_depth_and_the_class_wins() -> None:
    assert Posts().settings["limits"] == {"size": 99, "rate": 5, "page": 50}
    assert Posts().settings["list"] == [2]
    assert Limits().settings["limits"] == {"size": 10, "rate": 5}, "a base keeps its own"


def test_metadata_is_merged() -> None:
    assert Posts().metadata == {"team": "two", "zone": "z1"}


def test_c17_a_secret_of_a_base_stays_a_secret() -> None:
    info = define(Posts()).to_info()
    assert info["settings"] == {"limits": {"size": 99, "rate": 5, "page": 50}, "list": [2], "a": {"name": "shown"}}
    assert "hidden" not in str(info)


def test_dependencies_are_joined_and_named_in_full() -> None:
    assert define(Posts()).dependencies == ("pages", "users", "v2.mail")


def test_a_class_that_declares_nothing_has_what_its_bases_declare() -> None:
    assert define(Drafts()).settings == define(Posts()).settings
    assert list(define(Drafts()).actions) == ["drafts.limits"]


def test_hooks_of_all_run_those_of_bases_first_before_and_last_after() -> None:
    class Outer(Service):
        hooks: Mapping[str, Any] = {"before": {"*": "a", "x": ["b"]}, "after": {"*": "a"}, "error": {"*": "a"}}

    class Inner(Outer):
        hooks: Mapping[str, Any] = {"before": {"*": ["c"]}, "after": {"*": "c"}, "error": {"y": "c"}}

    assert Inner().hooks == {
        "before": {"*": ["a", "c"], "x": ["b"]},
        "after": {"*": ["c", "a"]},
        "error": {"*": ["a"], "y": ["c"]},
    }


def test_settings_may_be_given_to_one_instance() -> None:
    class Greeter(Service):
        name = "greeter"

        def __init__(self, greeting: str) -> None:
            self.settings = {"greeting": greeting}

    assert define(Greeter("hello")).to_info()["settings"] == {"greeting": "hello"}


def test_a_property_of_the_users_own_is_left_alone() -> None:
    class Base:
        settings: Mapping[str, Any] = {"a": 1}

    class Own(Base):
        @property
        def settings(self) -> Mapping[str, Any]:  # type: ignore[override]  # of one that is written, here it is read
            return {"own": True}

    merge_declared(Own)
    assert Own().settings == {"own": True}


@pytest.mark.parametrize("wrong", [(5,), ({"version": 2},), ("",), ({"name": 5},)])
def test_a_dependency_without_a_name_is_refused(wrong: Any) -> None:
    service = type("Wrong", (Service,), {"name": "wrong", "dependencies": wrong})()
    with pytest.raises(ServiceSchemaError, match="'wrong' depends on"):
        define(service)


class Audited:
    """A mixin that listens."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @event("user.*", throttle=1)
    async def on_user_audited(self, ctx: Context) -> None:
        self.heard.append("audit")
        raise ValueError("the audit failed")


class Accounts(Audited, Service):
    name = "accounts"

    @event("user.*", debounce=2)
    async def on_user(self, ctx: Context) -> None:
        self.heard.append("accounts")


@pytest.mark.anyio
async def test_handlers_of_one_pattern_by_mixin_and_class_both_run_and_the_failure_of_one_ends_not_the_other() -> None:
    accounts = Accounts()
    (listener,) = define(accounts).events
    assert (listener.name, listener.group, listener.settings) == ("user.*", "accounts", {"throttle": 1, "debounce": 2})
    with pytest.raises(ValueError, match="the audit failed"):
        await make_listener(listener)(Context.outgoing(None, "n", event="user.created"))  # type: ignore[arg-type] # no broker is asked
    assert sorted(accounts.heard) == ["accounts", "audit"]
