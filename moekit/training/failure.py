"""What training refuses: a recipe without an aim, a loss that is no number, a metric that nothing logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moekit.contracts import LayerReport
from moekit.errors import MoekitError, Problem, SpecError, nearest
from moekit.spec.recipe import Recipe, plural

COUNTED = "without data it is there to be read and counted: moekit params {}"


def refuse_untrainable(recipe: Recipe, needs: Sequence[str] = ("objective", "optimizer")) -> None:
    """Refuses a recipe that only describes a model.

    Args:
        recipe: what is to be trained.
        needs: slots of it that must be filled.

    Raises:
        SpecError: one of them is empty.
    """
    missing = [slot for slot in needs if getattr(recipe, slot) is None]
    if missing:
        raise SpecError(
            Problem(
                what=f"a recipe without {slot} cannot be trained",
                at=slot,
                list_with=f"moekit ls {plural(slot)}",
                notes=(COUNTED.format(recipe.name or "RECIPE"),) if slot == "data" else (),
            )
            for slot in missing
        )


def refuse_non_finite(total: Tensor, reports: Mapping[str, LayerReport], *, step: int) -> None:
    """Raises when a loss is NaN or infinite, before it reaches a weight.

    Args:
        total: 0-d, the loss.
        reports: the layers' reports, in the order of the model.
        step: the optimizer step, from 1.

    Raises:
        MoekitError: naming the step, and the first layer whose router logits are not finite.
    """
    if torch.isfinite(total):
        return
    broken = [name for name, report in reports.items() if not torch.isfinite(report.routing.logits_TE).all()]
    lines = [f"the loss is {total.item()} at step {step}: training stopped, no weight was touched in this step"]
    if broken:
        more = f" (and {len(broken) - 1} later layers)" if len(broken) > 1 else ""
        lines.append(f"  router logits are not finite in layer '{broken[0]}'{more}")
    elif reports:
        lines.append("  every layer's router logits are finite: look at the head and the objective")
    lines.append("  what helps most often: a lower optimizer.lr, more schedule.warmup, trainer.gradient_clip_val=1.0")
    raise MoekitError("\n".join(lines))


def unknown_metric(name: str, known: Sequence[str]) -> SpecError:
    """The error for a ``stop.metric`` that training does not log."""
    return SpecError(
        [
            Problem(
                what=f"training logs no metric '{name}'",
                at="stop.metric",
                expected="one of " + ", ".join(known),
                nearest=nearest(name, list(known)),
            )
        ]
    )
