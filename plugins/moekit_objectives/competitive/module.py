"""The errors of 1991 over every expert's own output. Reference: the paper's gradients, in ``naive.py``."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from moekit.contracts import Batch, LossSum, ModelOutput, Objective
from moekit.errors import MoekitError
from moekit.routing import Soft
from moekit_objectives.cases import at_least_fp32, sum_over_cases
from moekit_objectives.competitive import Competitive


@final
class CompetitiveObjective(Objective):
    """For each case, with target d, expert outputs o_i and gates p_i:

    - cooperative (1.1): ``|| d - sum_i p_i o_i ||²``
    - competitive (1.2): ``sum_i p_i || d - o_i ||²``
    - likelihood (1.3): ``-log sum_i p_i exp(-½ || d - o_i ||²)``, by logsumexp: finite at any distance
    """

    def __init__(self, spec: Competitive) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, output: ModelOutput, batch: Batch, *, progress: float = 0.0) -> LossSum:
        """The error summed over cases; metrics as in ``moekit_objectives.cases.sum_over_cases``.

        Raises:
            MoekitError: the model's output has no mixture, more than one, or none with every expert's output.
        """
        p_TE, o_TEO = _mixture(output)
        d_TO = batch.targets
        if self.spec.error == "cooperative":
            error_T = (d_TO - (p_TE[:, :, None] * o_TEO).sum(1)).square().sum(-1)
        else:
            distance_TE = (d_TO[:, None] - o_TEO).square().sum(-1)
            if self.spec.error == "competitive":
                error_T = (p_TE * distance_TE).sum(-1)
            else:
                # A gate that underflowed to 0 counts as the smallest positive number: the expert learns, the gate not.
                log_p_TE = p_TE.clamp(min=torch.finfo(p_TE.dtype).tiny).log()
                error_T = -torch.logsumexp(log_p_TE - distance_TE / 2, dim=-1)
        return sum_over_cases(error_T, output.y, batch)


def _mixture(output: ModelOutput) -> tuple[Tensor, Tensor]:
    """Gates ``p_TE`` and experts' outputs ``o_TEO`` of the one mixture, at least in fp32."""
    reports = list(output.reports.values())
    if len(reports) != 1:
        raise MoekitError(f"objective 'competitive' needs a model with one mixture layer; this one has {len(reports)}")
    routing, o_TEO = reports[0].routing, reports[0].expert_TEO
    if not isinstance(routing, Soft) or o_TEO is None:
        raise MoekitError(
            "objective 'competitive' needs every expert's own output for every case\n"
            "  expected a router of form 'soft' without slots (dense) and a dispatcher that keeps them (soft)\n"
            "  list them: moekit ls dispatchers"
        )
    return at_least_fp32(routing.combine_TEP[:, :, 0]), at_least_fp32(o_TEO)
