"""What training refuses: a recipe without an aim, a loss that is no number, a metric that nothing logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from moekit.contracts import LayerReport
from moekit.errors import Problem, SpecError, nearest
from moekit.spec.recipe import Recipe, plural

HELPS = "what helps most often: a lower optimizer.lr, more schedule.warmup, trainer.gradient_clip_val=1.0"
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


class Health:
    """Whether everything in an optimizer step was finite; if not, where it began. Nothing is read before ``take``."""

    def __init__(self) -> None:
        self._sound: dict[str, Tensor] = {}

    def observe(self, reports: Mapping[str, LayerReport]) -> None:
        """Adds what a forward pass saw.

        Args:
            reports: the layers' reports, in the order of the model.
        """
        for name, report in reports.items():
            sound = torch.isfinite(report.routing.logits_TE.detach()).all()
            self._sound[name] = self._sound[name] & sound if name in self._sound else sound

    def take(self, total: Tensor, norm: Tensor, parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
        """What is not finite, and where; empty when all is. Waits for the device once, and forgets the step.

        Args:
            total: 0-d, the loss, over all ranks.
            norm: 0-d, of all gradients.
            parameters: with their names and gradients.
        """
        sound, self._sound = self._sound, {}
        if bool(torch.isfinite(total) & torch.isfinite(norm)):
            return ""
        broken = [name for name, each in sound.items() if not each]
        if torch.isfinite(total):
            names = [name for name, p in parameters if p.grad is not None and not torch.isfinite(p.grad).all()]
            where = f"gradients that are not finite: {_few(names)}"
        elif broken:
            where = f"router logits that are not finite, in the order of the model: {_few(broken)}"
        else:
            where = "every layer's router logits are finite: look at the head and the objective"
        return f"the loss is {float(total)}, the norm of its gradients {float(norm)}\n  {where}\n  {HELPS}"


def _few(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


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
