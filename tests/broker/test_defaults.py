"""The defaults are those of Moleculer JS."""

from broker.options import default_node_id, make_options


def test_the_defaults_are_those_of_the_reference() -> None:
    options = make_options({}, {})
    assert (options.request_timeout, options.max_call_level, options.namespace) == (0, 0, "")
    assert (options.heartbeat_interval, options.heartbeat_timeout, options.shutdown_timeout) == (10, 30, 5)
    assert (options.strategy, options.prefer_local, options.protocol, options.serializer) == (
        "RoundRobin",
        True,
        None,
        "JSON",
    )


def test_c8_node_ids_are_unique_by_default() -> None:
    made = {default_node_id() for _ in range(20)}
    assert len(made) > 15
    assert make_options({}, {}).node_id != make_options({}, {}).node_id
