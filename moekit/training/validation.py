"""What is read off a validation set as a whole: the means of its sums, and MaxVio of its load."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import LayerReport, LossSum
from moekit.distributed import several_ranks
from moekit.observe.load import max_violation
from moekit.training.metrics import Meter, ratios
from moekit.training.readings import sums_of


class Validation:
    """Adds up one pass over a validation set, batch by batch, over all ranks.

    The load is counted here and not in ``BalanceStep``: no balancer moves by what validation sees.
    """

    def __init__(self) -> None:
        self._sums = Meter()
        self._load: dict[str, Tensor] = {}

    def add(self, loss: LossSum, reports: Mapping[str, LayerReport]) -> None:
        """Adds one batch. Nothing is copied to the host.

        Args:
            loss: the objective's sums.
            reports: what each layer saw; layers under soft routing, whose load is even by nature, are left out.
        """
        self._sums.add(sums_of(loss))
        for name, report in reports.items():
            if report.routing.form != "soft":
                self._load[name] = self._load[name] + report.load_E if name in self._load else report.load_E

    def take(self) -> dict[str, float]:
        """``val/loss``, the objective's other metrics, and ``val/max_violation`` where layers are sparse.

        The last is Wang et al.'s (2024) global MaxVio: each layer's load summed over the whole validation set, MaxVio
        of it, mean over layers.

        Returns:
            Numbers by name, the same on every rank; empty when nothing was added. Each rank must call it, and have
            added a batch, or none of them any.
        """
        values = ratios(self._sums.take(), "val/")
        loads, self._load = list(self._load.values()), {}
        if loads:
            flat = torch.cat(loads)
            if several_ranks():
                dist.all_reduce(flat)
            uneven = [max_violation(load_E) for load_E in torch.split(flat, [load_E.numel() for load_E in loads])]
            values["val/max_violation"] = float(torch.stack(uneven).mean())
        return values
