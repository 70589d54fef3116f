"""Round robin, as the reference says (protocol §9.2)."""

from broker.registry.strategies import RoundRobin


def test_c75_one_after_the_other() -> None:
    strategy = RoundRobin()
    assert "".join(strategy.choose("abc", None) for _ in range(7)) == "abcabca"


def test_c75_it_starts_again_when_the_list_became_shorter() -> None:
    strategy = RoundRobin()
    assert [strategy.choose("abc", None) for _ in range(2)] == ["a", "b"]
    assert strategy.choose("ab", None) == "a"
    assert strategy.choose("abc", None) == "b"
