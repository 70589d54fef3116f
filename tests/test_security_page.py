"""The permissions that SECURITY.md shows are enough for nodes, and keep each from the calls of others."""

import logging
import re

import anyio
import nats
import nats.errors
import pytest

from broker import Context, MoleculerError, Service, ServiceBroker, action, event
from tests.conftest import NatsServerFactory
from tests.support.blocks import read_blocks
from tests.support.processes import REPOSITORY
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

PAGE = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
PASSWORDS = {"orders": "change-me-1", "mail": "change-me-2"}


class Echo(Service):
    """Made into a class with a name for each node."""

    def __init__(self) -> None:
        self.heard = anyio.Event()

    @action
    async def echo(self, ctx: Context, text: str) -> str:
        return text

    @event("told")
    async def on_told(self, ctx: Context) -> None:
        self.heard.set()


async def test_the_permissions_that_are_shown_are_enough_and_keep_nodes_apart(
    make_nats_server: NatsServerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    (block,) = (block for block in read_blocks(PAGE) if block.language == "conf")
    server = make_nats_server(accounts=block.text.removeprefix("accounts:"))
    urls = {user: server.url.replace("//", f"//{user}:{password}@") for user, password in PASSWORDS.items()}
    services = {user: type(user, (Echo,), {"name": user})() for user in PASSWORDS}
    orders, mail = (
        ServiceBroker(user, transporter=urls[user], services=[services[user]]) for user in ("orders", "mail")
    )
    with caplog.at_level(logging.WARNING):
        async with orders, mail:
            await orders.wait_for_services("mail", timeout=30)
            await mail.wait_for_services("orders", timeout=30)
            assert await orders.call("mail.echo", {"text": "hello"}, timeout=30) == "hello"
            assert (await mail.ping("orders")) is not None
            await mail.broadcast("told")
            await services["orders"].heard.wait()
            assert caplog.messages == []
            with pytest.raises(MoleculerError) as caught:
                await mail.call("orders.echo", {"text": "hello"}, timeout=30)
            assert caught.value.type == "PUBLISH_DENIED"
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    spy = await nats.connect(urls["mail"], error_cb=note)
    subjects = ("MOL.>", "MOL.*.*", "MOL.*.orders", "MOL.RES.orders", "MOL.REQ.*")
    for subject in subjects:
        await spy.subscribe(subject)
    await eventually(lambda: len(refused) == len(subjects), "a refusal of each")
    await spy.close()


def test_every_command_that_can_be_forged_is_named() -> None:
    named = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) | {"EVENT"}
    assert named == {"DISCONNECT", "INFO", "HEARTBEAT", "REQ", "EVENT", "RES"}
