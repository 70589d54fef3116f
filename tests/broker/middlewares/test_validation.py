"""Params that do not fit are refused before other code sees them."""

import pytest

from broker.context import Context
from broker.errors import ValidationError
from broker.middlewares.validation import validation
from tests.support.targets import made_context, target

pytestmark = pytest.mark.anyio


async def handler(ctx: Context) -> str:
    return "done"


async def test_the_check_comes_first() -> None:
    def check(ctx: Context) -> None:
        if ctx.params is None:
            raise ValidationError("no params")

    chain = validation(handler, target(check=check))
    assert await chain(made_context({})) == "done"
    with pytest.raises(ValidationError):
        await chain(made_context())


def test_without_a_check_there_is_nothing_in_the_way() -> None:
    assert validation(handler, target()) is handler
