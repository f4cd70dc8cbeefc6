"""A study whose measure takes no time: the loss is a known function of the arm, the rate and the seed."""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import Any

from moekit_reproduce.study import Arm, Panel, Prediction, Study

calls: list[tuple[str, float, int]] = []
"""Every measurement: arm, rate, seed."""

best_rates = {"a": 10.0, "b": 10.0}


def measure(recipe: Any, arm: Arm, seed: int, report: Callable[[str], None]) -> dict[str, Any]:
    """A parabola over the logarithm of the rate; arm b is better by .1, and every seed by a tenth of its number."""
    calls.append((arm.name, recipe.optimizer.lr, seed))
    report("working")
    off = log2(recipe.optimizer.lr / best_rates[arm.name])
    loss = 1 + off**2 - 0.1 * (arm.name == "b") - 0.1 * seed
    return {"loss": loss, "total": 24.0, "work": 24.0, "executed": 24.0, "curve": [(1, loss + 1), (2, loss)]}


def study(*, rates: tuple[float, ...] = (10.0, 20.0, 40.0), follower: bool = False) -> Study:
    """Two arms; with ``follower``, the second takes the first's rate, doubled."""
    recipe = ("jacobs1991", {"trainer": {"max_steps": 2}})
    measured = "fake_study:measure"
    second = (
        Arm(name="b", recipe=recipe, rate_of="a", factor=2.0, measure=measured)
        if follower
        else Arm(name="b", recipe=recipe, rates=rates, measure=measured)
    )
    return Study(
        title="Author 1999: A title",
        about="Two systems.",
        arms=(Arm(name="a", recipe=recipe, rates=rates, measure=measured), second),
        predictions=(
            Prediction(
                claim="b is better",
                paper="1 against 2",
                source="table 1",
                measure="a − b",
                contrast=lambda seen: seen["a"]["loss"] - seen["b"]["loss"],
                at_least=0.05,
            ),
        ),
        panels=(
            Panel(value="loss", title="loss"),
            Panel(value="curve", title="curve"),
            Panel(value="loss", title="by x", points={"all": [(1, "a"), (2, "b")], "one": [(0, "a")]}, x="x", log=True),
        ),
        columns={"loss": "loss"},
    )
