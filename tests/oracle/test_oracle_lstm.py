"""The LSTM model against loops over time steps, cells and gates, in fp64: logits and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moekit.spec.kinds import MoE, RouterSpec
from moekit_dispatchers.loop import Loop
from moekit_experts.ffn import Ffn
from moekit_models.lstm import LSTM, naive
from moekit_models.lstm.module import LSTMModel
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.topk import TopK

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

VOCAB = 5


ROUTERS: dict[str, RouterSpec] = {
    "noisy": NoisyTopK(top_k=2, zero_init=False),
    "two": TopK(top_k=2, score_over="chosen"),
    "all": TopK(top_k=3, score_over="chosen"),
}


def model_of(*, dim: int, hidden: int, router: str) -> LSTMModel:
    """In evaluation, so without noise; ``dense`` for one feed-forward net in the mixture's place."""
    between: dict[str, Any] = {"ffn": Ffn(hidden=4)}
    if router != "dense":
        between = {"moe": MoE(router=ROUTERS[router], experts=Ffn(count=3, hidden=2), dispatcher=Loop())}
    model = LSTMModel(LSTM(vocab=VOCAB, dim=dim, hidden=hidden, dropout=0.5, init_std=0.7, **between)).double().eval()
    for layer in (model.lower, model.upper):
        nn.init.normal_(layer.bias_ih_l0)  # away from 0, so that it counts
    return model


@settings(max_examples=20, deadline=None)
@given(
    dim=st.integers(1, 3),
    more=st.integers(0, 2),
    router=st.sampled_from(["dense", *ROUTERS]),
    S=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_logits_and_gradients(dim: int, more: int, router: str, S: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = model_of(dim=dim, hidden=dim + more, router=router)
    tokens_BS = torch.randint(VOCAB, (2, S))
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fast = model(tokens_BS).y
    top_k = {"dense": 0, "all": 3}.get(router, 2)
    slow = torch.stack([naive.predict(text.tolist(), leaves, top_k=top_k) for text in tokens_BS])
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    weigh = torch.randn_like(fast)
    grads = [
        torch.autograd.grad((y * weigh).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        for y in (fast, slow)
    ]
    for name, a, b in zip(leaves, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_one_cell_by_hand() -> None:
    """One cell, all weights 1, all biases 0, input 1 from a state of zeros: i = f = o = sigmoid(1), g = tanh(1)."""
    w = {"lower.weight_ih_l0": torch.ones(4, 1), "lower.weight_hh_l0": torch.ones(4, 1)}
    w["lower.bias_ih_l0"] = torch.zeros(4)
    one, zero = torch.ones(()), torch.zeros(())
    (h,), (c,) = naive.step([one], ([zero], [zero]), w, "lower")
    assert c.item() == pytest.approx(0.731059 * 0.761594, abs=1e-6)
    assert h.item() == pytest.approx(0.731059 * 0.505577, abs=1e-6)  # tanh of .556770
