"""``trainer.strategy: {use: sharded, ...}``."""

from __future__ import annotations

import re

import pytest

from moekit import SpecError, load
from moekit.spec.sharding import Sharded, sharded_of


def test_a_strategy_is_read_from_its_name_or_mapping(real_plugins: None) -> None:
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
            "'use' is missing: it names the strategy\n  at trainer.strategy  in command line\n  expected use: sharded",
        ),
        ("{use: sharded, ep: 0}", "ep=0"),
        ("{use: sharded, timeout: 0.0}", "timeout=0"),
        ("{use: sharded, ep: two}", "ep: 'two' is not an integer"),
    ],
)
def test_a_mistake_in_the_strategy_is_reported(strategy: str, message: str, real_plugins: None) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        load("deepseek_v3", [f"trainer.strategy={strategy}"])
