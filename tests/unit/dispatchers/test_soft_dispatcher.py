from __future__ import annotations

import pytest
import torch

from moekit.contracts import LayerDims
from moekit.routing import Soft as SoftRouting
from moekit_dispatchers.soft import Soft
from moekit_dispatchers.soft.module import SoftDispatcher
from moekit_experts.linear import Linear
from moekit_experts.linear.module import LinearExperts

T, D, E = 5, 8, 3
DIMS = LayerDims(dim=D, num_experts=E)
SOFT = SoftDispatcher(Soft(), DIMS)


def routing(slots: int | None) -> SoftRouting:
    zeros_TE = torch.zeros(T, E)
    combine_TEP = torch.rand(T, E, slots or 1)
    dispatch_TEP = None if slots is None else torch.rand(T, E, slots)
    return SoftRouting(logits_TE=zeros_TE, scores_TE=zeros_TE, combine_TEP=combine_TEP, dispatch_TEP=dispatch_TEP)


@pytest.mark.parametrize("slots", [None, 2])
def test_output_has_the_experts_dtype_also_under_autocast(slots: int | None) -> None:
    bank, x_TD = LinearExperts(Linear(count=E), DIMS), torch.randn(T, D)
    assert SOFT(x_TD, routing(slots), bank).y_TO.dtype == torch.float32
    assert SOFT(x_TD.bfloat16(), routing(slots), bank.bfloat16()).y_TO.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert SOFT(x_TD, routing(slots), bank.float()).y_TO.dtype == torch.bfloat16


@pytest.mark.parametrize("slots, which", [(None, "combine"), (2, "combine"), (2, "dispatch")])
def test_sums_run_in_the_routings_dtype_under_autocast(slots: int | None, which: str) -> None:
    """Weights 1 + 2^-12 and -1 on equal things leave 2^-12; in bf16 they would leave nothing."""
    bank = LinearExperts(Linear(count=E, bias=False), DIMS)
    with torch.no_grad():
        bank.w_EOD.copy_(torch.eye(D).expand(E, D, D))
    way = routing(slots)
    way.combine_TEP.zero_()
    way.combine_TEP[:, 0, 0] = 1
    if which == "combine":
        way.combine_TEP[:, 0, 0] += 2**-12
        way.combine_TEP[:, 1, 0] = -1
    if way.dispatch_TEP is not None:
        way.dispatch_TEP.zero_()
        way.dispatch_TEP[0] = 1
    if way.dispatch_TEP is not None and which == "dispatch":
        way.dispatch_TEP[0] += 2**-12
        way.dispatch_TEP[1] = -1
    with torch.autocast("cpu", torch.bfloat16):
        y_TO = SOFT(torch.ones(T, D), way, bank).y_TO
    torch.testing.assert_close(y_TO, torch.full((T, D), 2.0**-12).bfloat16(), rtol=0, atol=0)
