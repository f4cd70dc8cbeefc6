"""Checks of strategies: ``target(spec, recipe)``, a ``Strategy`` of Lightning, on one process."""

from __future__ import annotations

import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.strategies import Strategy

from moekit.parallel.strategy import ShardingStrategy
from moekit.spec import load
from moekit.spec.kinds import StrategySpec
from moekit.spec.recipe import Precision
from moekit_testing.assertions import require, require_equal
from moekit_testing.case import Case, Check, Omitted, claimed
from moekit_testing.fixtures import runs


def checks(case: Case) -> Iterator[Check | Omitted]:
    """The checks of a strategy."""
    yield from (check_strategy_class, check_strategy_precision, check_strategy_trains)
    yield from claimed(case, "shards", check_strategy_shards)


def check_strategy_class(case: Case) -> None:
    """Builds a ``Strategy`` of Lightning."""
    made = _made(case)
    require(isinstance(made, Strategy), found=type(made).__name__, expected="a lightning.pytorch.strategies.Strategy")


def check_strategy_shards(case: Case) -> None:
    """Builds a ``ShardingStrategy``, as it claims (``shards``): moekit then lets it build the model, in shards."""
    made = _made(case)
    expected = "a moekit.parallel.strategy.ShardingStrategy, or no claim"
    require(isinstance(made, ShardingStrategy), found=type(made).__name__, expected=expected)


def check_strategy_precision(case: Case) -> None:
    """Says of every precision of Lightning in ``check_precision`` whether it conflicts, in sentences."""
    spec = case.spec_as(StrategySpec)
    for precision in (None, *typing.get_args(Precision)):
        said = list(spec.check_precision(precision))
        wrong = [each for each in said if not isinstance(each, str) or not each.strip()]
        require(not wrong, found=f"{wrong} for precision {precision}", expected="sentences")


def check_strategy_trains(case: Case) -> None:
    """Trains on one process to the weights that training without it gives."""
    with tempfile.TemporaryDirectory() as folder, runs.parts_of(case), runs.own_process_group():
        alone = runs.train(Path(folder) / "alone").model.state_dict()
        found = runs.train(Path(folder) / "here", trainer={"strategy": case.spec}).model.state_dict()
    for name, expected in alone.items():
        require_equal(found[name], expected, f"'{name}' after {runs.STEPS} steps", tolerance=1e-6)


def _made(case: Case) -> object:
    with runs.parts_of(case):
        recipe = load(runs.recipe({"strategy": case.spec}))
    return case.component.load()(case.spec, recipe)
