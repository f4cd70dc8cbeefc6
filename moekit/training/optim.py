"""What moves the weights: a recipe's optimizer and its schedule, as Lightning takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from moekit.compat import resume_schedule
from moekit.contracts import Model
from moekit.registry import build
from moekit.spec.recipe import Recipe
from moekit.training.optimizer_state import keep_by_name


def optimizer_of(recipe: Recipe, model: Model, steps: int) -> Any:
    """The recipe's optimizer; with its schedule, where there is one, to be stepped once per optimizer step.

    Args:
        recipe: has an optimizer.
        model: whose parameters move.
        steps: length of the run.
    """
    optimizer = build(recipe.optimizer, model)  # type: ignore[arg-type]
    split_by_layout(optimizer)
    keep_by_name(optimizer, model)
    if recipe.schedule is None:
        return optimizer
    factor = build(recipe.schedule, steps)
    scheduler = ByStep(optimizer, lambda step: float(factor(step)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ByStep(torch.optim.lr_scheduler.LambdaLR):
    """A schedule whose state is the step alone: rates are the optimizer's, whose groups are cut by layout."""

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back. The optimizer has its state already: its rates, and those they began with."""
        resume_schedule(self, int(state_dict["step"]))


def split_by_layout(optimizer: torch.optim.Optimizer) -> None:
    """Cuts param groups until all parameters of one lie alike: kernels over many tensors take no mixture of layouts.

    Parts keep the options of their group, and their order. A plain model's groups stay as they are.
    """
    groups = []
    for group in optimizer.param_groups:
        parts: dict[Any, list[torch.nn.Parameter]] = {}
        for p in group["params"]:
            parts.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
        groups += [{**group, "params": part} for part in parts.values()]
    optimizer.param_groups[:] = groups
