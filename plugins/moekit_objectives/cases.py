"""What objectives over plain cases share: sums over valid cases, and the metrics of the table of 1991."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.contracts import Batch, LossSum


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32, or in fp64 if it is fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sum_over_cases(error_T: Tensor, y_TO: Tensor, batch: Batch) -> LossSum:
    """The sum of each case's error over valid cases, with the metrics of every objective over cases.

    Returns:
        Metrics: ``loss``; ``blend_mse``, the squared error of the output, summed over outputs and averaged over
        cases; ``accuracy``, the share of outputs on the target's side of 0.5.
    """
    d_TO, y_TO = batch.targets, at_least_fp32(y_TO.detach())
    valid_T = torch.ones_like(error_T, dtype=torch.bool) if batch.valid is None else batch.valid
    count = valid_T.sum()
    total = error_T.where(valid_T, 0).sum()
    squared = (y_TO - d_TO).square().sum(-1).where(valid_T, 0).sum()
    right = (((y_TO > 0.5) == (d_TO > 0.5)) & valid_T[:, None]).sum()
    metrics = {
        "loss": (total.detach(), count),
        "blend_mse": (squared, count),
        "accuracy": (right, count * d_TO.shape[1]),
    }
    return LossSum(total=total, count=count, metrics=metrics)
