"""Averages of the last pings of each host (protocol §9.2)."""

from broker.registry.nodes import Latencies


def used(collect: int = 3) -> Latencies:
    latencies = Latencies()
    latencies.use(collect_count=collect, ping_interval_s=10)
    return latencies


def test_c75_the_average_is_that_of_the_last_pings() -> None:
    latencies = used()
    for elapsed in (9.0, 1.0, 2.0, 3.0):
        latencies.record("host-a", elapsed)
    assert latencies.average("host-a") == 2.0
    assert latencies.average("host-b") is None
    assert latencies.average(None) is None


def test_c75_a_host_that_is_gone_is_forgotten() -> None:
    latencies = used()
    latencies.record("host-a", 9.0)
    latencies.forget("host-a")
    assert latencies.average("host-a") is None
    latencies.record("host-a", 1.0)
    assert latencies.average("host-a") == 1.0
    latencies.forget("never seen")


def test_nothing_is_kept_until_a_strategy_asks() -> None:
    latencies = Latencies()
    latencies.record("host-a", 1.0)
    assert latencies.average("host-a") is None


def test_c75_one_master_the_first_one_says_how_often() -> None:
    started: list[str] = []
    latencies = Latencies()
    latencies.on_use = lambda: started.append("started")
    latencies.use(collect_count=5, ping_interval_s=1)
    latencies.use(collect_count=9, ping_interval_s=9)
    assert (started, latencies.ping_interval_s) == (["started"], 1)
