"""``trainer.strategy: {use: sharded, ...}``."""

from __future__ import annotations

import pytest

from moekit import SpecError, load
from moekit.spec.sharding import Sharded, sharded_of


def test_a_mapping_becomes_its_options() -> None:
    given = load("deepseek_v3", ["trainer.strategy={use: sharded, ep: 2}", "trainer.devices=4"])
    assert sharded_of(given.trainer) == Sharded(ep=2)
    assert sharded_of({"strategy": "sharded"}) == Sharded()
    assert sharded_of({"strategy": {"use": "sharded", "timeout": 5.0}}) == Sharded(ep=1, timeout=5.0)
    assert sharded_of({"strategy": "ddp"}) is None and sharded_of({}) is None


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("{use: sharded, epp: 2}", "the strategy 'sharded' has no option 'epp'\n  at trainer.strategy.epp"),
        ("{use: shard, ep: 2}", "a strategy with options is 'sharded', not 'shard'"),
        (
            "{ep: 2}",
            "no 'use' says which strategy this is\n  at trainer.strategy  in command line\n  expected use: sharded",
        ),
        ("{use: sharded, ep: 0}", "ep=0"),
        ("{use: sharded, timeout: 0.0}", "timeout=0"),
        ("{use: sharded, ep: two}", "ep: 'two' is not an integer"),
    ],
)
def test_mistakes_are_told_where_they_stand(strategy: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load("deepseek_v3", [f"trainer.strategy={strategy}"])
    assert message in str(caught.value)
