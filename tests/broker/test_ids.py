"""Ids look like random UUIDs and never repeat."""

import uuid

from broker.ids import new_id


def test_an_id_is_a_uuid_of_version_4() -> None:
    for _ in range(1000):
        parsed = uuid.UUID(new_id())
        assert parsed.version == 4
        assert parsed.variant == uuid.RFC_4122


def test_ids_do_not_repeat() -> None:
    assert len({new_id() for _ in range(10_000)}) == 10_000
