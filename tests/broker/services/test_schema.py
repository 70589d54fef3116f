"""What a service declares is announced as the reference says (protocol §3.2, §9.5)."""

from typing import Any

import pytest

from broker.errors import ServiceSchemaError
from broker.services.schema import (
    ActionDefinition,
    EventDefinition,
    ServiceDefinition,
    check_service_name,
    full_action_name,
    full_service_name,
    public_settings,
)


async def handler(*_: Any) -> None: ...


def action(**fields: Any) -> ActionDefinition:
    return ActionDefinition(
        **{"name": "posts.find", "raw_name": "find", "service": "posts", "handler": handler, **fields}
    )


def service(**fields: Any) -> ServiceDefinition:
    given: dict[str, Any] = {"name": "posts", "full_name": "posts", "actions": {}, "events": (), **fields}
    return ServiceDefinition(**given)


@pytest.mark.parametrize(
    ("version", "settings", "expected"),
    [
        (None, {}, "posts"),
        (2, {}, "v2.posts"),
        ("staging", {}, "staging.posts"),
        (4, {"$noVersionPrefix": True}, "posts"),
        (0, {}, "v0.posts"),
    ],
)
def test_c19_the_full_name_holds_the_version(version: Any, settings: dict[str, Any], expected: str) -> None:
    assert full_service_name("posts", version, settings) == expected


def test_c19_an_action_may_go_without_the_name_of_its_service() -> None:
    assert full_action_name("v2.posts", "find") == "v2.posts.find"
    assert full_action_name("v4.posts", "direct.call", {"$noServiceNamePrefix": True}) == "direct.call"


def test_c16_an_action_has_its_name_and_raw_name() -> None:
    assert action().to_info() == {"name": "posts.find", "rawName": "find"}


def test_the_timeout_is_announced_in_milliseconds() -> None:
    assert action(timeout_s=2.5).to_info()["timeout"] == 2500


def test_c25_a_fallback_is_never_announced_and_other_extras_are() -> None:
    info = action(extra={"rest": "GET /", "fallback": "other"}, visibility="protected").to_info()
    assert info == {"rest": "GET /", "name": "posts.find", "rawName": "find", "visibility": "protected"}


def test_extras_cannot_hide_the_name() -> None:
    assert action(extra={"name": "wrong", "rawName": "wrong"}).to_info() == {"name": "posts.find", "rawName": "find"}


def test_an_event_has_its_name_and_group() -> None:
    event = EventDefinition(name="user.*", group="mail", service="posts", handlers=(handler,))
    assert event.to_info() == {"name": "user.*", "group": "mail"}


def test_c16_c18_keys_equal_names_and_private_actions_are_absent() -> None:
    actions = {
        "posts.find": action(),
        "posts.inner": action(name="posts.inner", raw_name="inner", visibility="protected"),
        "posts.hidden": action(name="posts.hidden", raw_name="hidden", visibility="private"),
    }
    info = service(actions=actions).to_info()
    assert {key: entry["name"] for key, entry in info["actions"].items()} == {
        "posts.find": "posts.find",
        "posts.inner": "posts.inner",
    }
    assert info["actions"]["posts.inner"]["visibility"] == "protected"


def test_an_unversioned_service_names_no_version() -> None:
    assert service().to_info() == {
        "name": "posts",
        "fullName": "posts",
        "settings": {},
        "metadata": {},
        "actions": {},
        "events": {},
    }
    assert service(full_name="v2.posts", version=2).to_info()["version"] == 2


def test_c17_secure_settings_and_their_list_stay_here() -> None:
    settings = {
        "$secureSettings": ["password", "db.url", "absent.deep", "db.nested.key"],
        "password": "secret",
        "port": 80,
        "db": {"url": "secret", "pool": 5, "nested": {"key": "secret", "other": 1}},
    }
    assert public_settings(settings) == {"port": 80, "db": {"pool": 5, "nested": {"other": 1}}}
    assert settings["db"]["url"] == "secret"  # type: ignore[index]  # the original is not changed


@pytest.mark.parametrize("name", ["", None, 5, "a b", "a*", "a>", "a\n"])
def test_a_service_without_a_usable_name_is_refused(name: Any) -> None:
    with pytest.raises(ServiceSchemaError, match="needs a name"):
        check_service_name(name)


def test_a_usable_name_passes() -> None:
    assert check_service_name("environments-store") == "environments-store"
