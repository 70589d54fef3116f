"""One thing that was looked at, and how it stands: what `verify` and `backup` show."""

from typing import Literal

import msgspec

__all__ = ["Check", "all_hold"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """`warning`: it holds, and something about it should be known; `unknown`: it cannot be seen from here."""

    name: str
    state: Literal["ok", "warning", "failed", "unknown"]
    detail: str


def all_hold(checks: tuple[Check, ...]) -> bool:
    return all(check.state != "failed" for check in checks)
