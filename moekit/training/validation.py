"""What is read off a validation set as a whole: the means of its sums, and MaxVio of its load."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import LayerReport, LossSum
from moekit.observe.load import max_violation
from moekit.ranks import several_ranks
from moekit.training.meter import Meter, ratios
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

    def take(self, device: torch.device) -> dict[str, float]:
        """``val/loss``, the objective's other metrics, and ``val/max_violation`` where layers are sparse.

        The last is Wang et al.'s (2024) global MaxVio: each layer's load summed over the whole validation set, MaxVio
        of it, mean over layers.

        Args:
            device: this rank's, for its part in the sums over ranks when it had no batch.

        Returns:
            Numbers by name, the same on every rank (each must call this); empty when nothing was added on any.
        """
        several = several_ranks()
        if several:
            self._agree(device)
        values = ratios(self._sums.take(), "val/")
        loads, self._load = list(self._load.values()), {}
        if loads:
            flat = torch.cat(loads)
            if several:
                dist.all_reduce(flat)
            uneven = [max_violation(load_E) for load_E in torch.split(flat, [load_E.numel() for load_E in loads])]
            values["val/max_violation"] = float(torch.stack(uneven).mean())
        return values

    def _agree(self, device: torch.device) -> None:
        """Gives a rank without a batch (there are fewer batches than ranks) zeros under the names of the others."""
        mine = (self._sums.names(), {name: load_E.numel() for name, load_E in self._load.items()})
        every = [mine] * dist.get_world_size()
        dist.all_gather_object(every, mine)
        names, sizes = max(every, key=lambda one: len(one[0]))
        if not mine[0]:
            zero = torch.zeros((), device=device)
            self._sums.add(dict.fromkeys(names, (zero, zero)))
            self._load = {name: torch.zeros(E, dtype=torch.int64, device=device) for name, E in sizes.items()}
