"""The automatic dispatcher: what it chooses and why, and that the choice changes no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from routings import best_of_random
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from moekit.contracts import ExpertBank, LayerDims
from moekit.routing import Routing, Soft, TokenChoice
from moekit_dispatchers.auto import Auto, module
from moekit_dispatchers.auto.module import AutoDispatcher
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

T, D, H, E, K = 12, 8, 6, 4, 2
DIMS = LayerDims(dim=D, num_experts=E)


def routing() -> TokenChoice:
    torch.manual_seed(0)
    return best_of_random(T, E, K)


def soft() -> Soft:
    logits_TE = routing().logits_TE
    scores_TE = logits_TE.softmax(1)
    return Soft(logits_TE=logits_TE, scores_TE=scores_TE, combine_TEP=scores_TE[:, :, None])


def glu(**changes: Any) -> GluExperts:
    torch.manual_seed(1)
    return GluExperts(Glu(count=E, hidden=H, **changes), DIMS)


ROWS = T * K // E
WORK = ROWS * 2 * H * D


@pytest.mark.parametrize(
    ("routed", "bank", "x_TD", "limit", "words"),
    [
        (soft(), glu(), torch.randn(T, D), 0, "soft: the routing is soft"),
        (routing(), glu(scale_bias=True), torch.randn(T, D), 0, "grouped: GluExperts has no standard form"),
        (
            routing(),
            glu(),
            torch.randn(T, D).bfloat16(),
            0,
            "grouped: 'fused' cannot: it takes fp32 or fp64 throughout",
        ),
        (routing(), glu(), torch.randn(T, D), WORK, f"fused: {ROWS} rows per expert"),
        (routing(), glu(), torch.randn(T, D), WORK + 1, f"grouped: {ROWS} rows per expert"),
    ],
    ids=["soft", "no form", "dtype", "work enough", "too little work"],
)
def test_explain_gives_the_choice_and_its_reason(
    routed: Routing, bank: ExpertBank, x_TD: Tensor, limit: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FUSED_FROM", limit)
    assert AutoDispatcher(Auto(), DIMS).explain(x_TD, routed, bank).startswith(words)


@pytest.mark.parametrize("limit", [0, 1 << 60], ids=["fused", "grouped"])
def test_the_choice_changes_no_result(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FUSED_FROM", limit)
    x_TD, routed, bank = torch.randn(T, D, dtype=torch.float64), routing(), glu().double()
    found, expected = (d(x_TD, routed, bank).y_TO for d in (AutoDispatcher(Auto(), DIMS), LoopDispatcher(Loop(), DIMS)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_option_save_is_passed_to_fused() -> None:
    assert AutoDispatcher(Auto(save="nothing"), DIMS).fused.spec.save == "nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_grouped_is_chosen(dtype: torch.dtype) -> None:
    """No GPU is needed: the choice is made from static facts."""
    with FakeTensorMode():
        x_TD = torch.empty(T, D, dtype=dtype, device="cuda")
    words = AutoDispatcher(Auto(), DIMS).explain(x_TD, routing(), glu())
    assert words == "grouped: 'fused' is for CPUs, and the tokens are on cuda"
