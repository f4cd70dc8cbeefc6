"""What ``test_metrics`` runs in two processes: the same four batches, distributed over ranks in several ways."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist

from moekit import LayerReport, LossSum, TokenChoice
from moekit.training.metrics import Validation

EXPERTS = ([0, 1], [1, 0], [0, 2, 3], [0])  # loads (4, 2, 1, 1): the busiest of four has twice the mean


def batch(experts: Sequence[int]) -> tuple[LossSum, dict[str, LayerReport]]:
    """A loss of 1 a token, and one layer of four experts."""
    expert_TK, scores = torch.tensor(experts)[:, None], torch.rand(len(experts), 4)
    routing = TokenChoice(logits_TE=scores, scores_TE=scores, expert_TK=expert_TK, gate_TK=torch.ones(expert_TK.shape))
    size = torch.tensor(float(len(experts)))
    return LossSum(total=size, count=size), {"layer": LayerReport(routing=routing, dropped=torch.tensor(0))}


def values(batches: Sequence[Sequence[int]]) -> dict[str, float]:
    """The metrics of a validation with these batches."""
    validation = Validation()
    for experts in batches:
        validation.add(*batch(experts))
    return validation.take()


def main(out: str) -> None:
    """All on one rank; alternating; one on rank 0 and three on rank 1; none."""
    torch.set_num_threads(1)
    alone = values(EXPERTS)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    even = values(EXPERTS[rank::2])
    uneven = values(EXPERTS[1:] if rank == 1 else EXPERTS[:1])
    nothing = values(())
    dist.barrier()
    dist.destroy_process_group()
    torch.save((alone, even, uneven, nothing), f"{out}{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
