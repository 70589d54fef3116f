"""The user's own handler sees every error and decides what becomes of it."""

from typing import Any

import pytest

from broker.context import Context
from broker.middlewares.error_handling import handling_errors
from tests.support.targets import made_context, target

pytestmark = pytest.mark.anyio


async def failing(ctx: Context) -> None:
    raise ValueError("broken")


async def test_what_it_returns_is_the_result_and_what_it_raises_the_error() -> None:
    async def mend(error: BaseException, ctx: Context) -> Any:
        if ctx.params == "mend":
            return f"mended {error}"
        raise KeyError("worse") from error

    chain = handling_errors(mend)(failing, target())
    assert await chain(made_context("mend")) == "mended broken"
    with pytest.raises(KeyError, match="worse"):
        await chain(made_context("other"))


async def test_it_may_be_a_plain_function() -> None:
    assert await handling_errors(lambda error, ctx: str(error))(failing, target())(made_context()) == "broken"


def test_without_one_there_is_nothing_in_the_way() -> None:
    assert handling_errors(None)(failing, target()) is failing
