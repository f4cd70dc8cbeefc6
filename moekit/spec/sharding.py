"""``trainer.strategy: {use: sharded, ...}``: training on several ranks, sharded. Torch-free."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from moekit.errors import nearest
from moekit.spec.fields import ConflictError, Spec, option
from moekit.spec.places import Report

NAME = "sharded"


class Sharded(Spec):
    """Shards parameters, gradients and optimizer state: experts over ``ep`` ranks, all else over every rank."""

    ep: int = option(
        1, "ranks that share the routed experts of a layer; a divisor of all ranks and of the experts", ge=1
    )
    timeout: float = option(600.0, "seconds that a rank waits for the others before it fails", gt=0)


def sharded_of(trainer: Mapping[str, Any]) -> Sharded | None:
    """The sharding that a recipe's ``trainer`` configures; None where it names another strategy, or none.

    Raises:
        ConflictError, TypeError: options that ``check_sharded`` reports.
    """
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping):
        return Sharded() if strategy == NAME else None
    return Sharded(**{name: value for name, value in strategy.items() if name != "use"})


SCALE_FREE = "bf16-mixed, 32-true or another precision without a loss scale; or ep: 1"


def no_loss_scale(ep: int) -> str:
    """Why fp16 with a loss scale and expert parallelism exclude each other, as a sentence.

    torch's ``GradScaler`` unscales all gradients in one call, which takes tensors of one layout alone, and agrees on
    infinite gradients within the ranks of the first one's mesh; experts have another mesh, or none.
    """
    return (
        f"16-mixed cannot be used with ep={ep}: its loss scale needs gradients of one layout, and experts have another"
    )


def check_loss_scale(options: Mapping[str, Any], report: Report) -> None:
    """Reports a ``trainer`` with fp16 mixed precision and expert parallelism."""
    strategy = options.get("strategy")
    ep = strategy.get("ep", 1) if isinstance(strategy, Mapping) and strategy.get("use") == NAME else 1
    if str(options.get("precision")) in ("16", "16-mixed") and isinstance(ep, int) and ep > 1:
        report.add(("trainer", "precision"), no_loss_scale(ep), expected=SCALE_FREE)


def check_sharded(strategy: Any, report: Report) -> None:
    """Reports the mistakes in a ``trainer.strategy`` that is a mapping."""
    if not isinstance(strategy, Mapping):
        return
    here = ("trainer", "strategy")
    if "use" not in strategy:
        report.add(here, "'use' is missing: it names the strategy", expected=f"use: {NAME}")
        return
    if strategy["use"] != NAME:
        report.add((*here, "use"), f"a strategy with options is '{NAME}', not {strategy['use']!r}", expected=NAME)
        return
    known = [f.name for f in dataclasses.fields(Sharded)]
    strays = [name for name in strategy if name not in (*known, "use")]
    for name in strays:
        report.add(
            (*here, name),
            f"the strategy '{NAME}' has no option '{name}'",
            expected="one of " + ", ".join(known),
            nearest=nearest(str(name), known),
        )
    if not strays:
        try:
            sharded_of({"strategy": cast(Any, strategy)})
        except ConflictError as error:
            for sentence in error.sentences:
                report.add(here, sentence)
