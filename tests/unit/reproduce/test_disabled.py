"""Disabling experts: nothing disabled changes nothing; the best are not used; the layer is as before afterwards."""

from __future__ import annotations

import pytest
import torch

import moekit
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit_reproduce.papers.disabled import Without, disabled


def layer(shared: bool = False, **router: object) -> MoELayer:
    expert = {"use": "glu", "hidden": 6}
    made = moekit.layer(
        dim=8,
        router={"use": "topk", "top_k": 2, **router},
        experts={**expert, "count": 16},
        shared=expert if shared else None,
        dispatcher="loop",
    )
    return made.eval()


@torch.no_grad()
def test_nothing_disabled_changes_nothing() -> None:
    of, x_TD = layer(), torch.randn(20, 8)
    expected = of(x_TD)[0]
    with disabled([of], best=0.0):
        torch.testing.assert_close(of(x_TD)[0], expected)


@torch.no_grad()
def test_each_tokens_best_experts_are_replaced_by_the_next_ones() -> None:
    of, x_TD = layer(), torch.randn(20, 8)
    logits_TE = of(x_TD)[1].routing.logits_TE
    with disabled([of], best=1 / 16):
        routing = of(x_TD)[1].routing
    order_TE = logits_TE.sort(dim=1, descending=True).indices
    assert torch.equal(routing.expert_TK, order_TE[:, 1:3])
    left_TE = logits_TE.scatter(1, order_TE[:, :1], -torch.inf).softmax(-1)
    torch.testing.assert_close(routing.gate_TK, left_TE.gather(1, order_TE[:, 1:3]))


@torch.no_grad()
def test_without_shared_experts_one_more_routed_expert_runs() -> None:
    of, x_TD = layer(shared=True), torch.randn(20, 8)
    whole = of(x_TD)[0]
    with disabled([of], shared=True):
        without, report = of(x_TD)
    assert report.routing.expert_TK.shape == (20, 3) and int(report.load_E.sum()) == 60
    assert not torch.allclose(whole, without)
    torch.testing.assert_close(of(x_TD)[0], whole)
    assert of.shared is not None and not isinstance(of.router, Without)


def test_the_layer_is_restored_after_an_error() -> None:
    of = layer()
    with pytest.raises(ZeroDivisionError, match="stop"), disabled([of], best=0.25):
        raise ZeroDivisionError("stop")
    assert not isinstance(of.router, Without)


def test_sigmoid_gates_are_refused() -> None:
    of = layer(score="sigmoid")
    with disabled([of], best=0.25), pytest.raises(MoekitError, match="only under a softmax without a bias"):
        of(torch.randn(4, 8))
