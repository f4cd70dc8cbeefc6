"""Properties of strictly balanced gating, Shazeer et al. 2017, appendix F. It equals its equations in tests/oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moekit.contracts import Init, LayerDims
from moekit.moe_layer import MoELayer
from moekit.routing import TokenChoice
from moekit.spec.kinds import MoE
from moekit_dispatchers.grouped import Grouped
from moekit_experts.ffn import Ffn
from moekit_routers.strict import Strict
from moekit_routers.strict.module import StrictRouter

NAN = float("nan")


def strict(E: int = 4, D: int = 6, top_k: int = 2, weight: float = 1.0) -> StrictRouter:
    router = StrictRouter(Strict(top_k=top_k, threshold_weight=weight), LayerDims(dim=D, num_experts=E))
    with torch.no_grad():
        router.weight_ED.normal_(std=0.5)
    return router


def scored(scores: list[list[float]], thresholds: list[float], *, top_k: int, training: bool) -> TokenChoice:
    """The routing of tokens with these softmax values, in fp64."""
    X_TE = torch.tensor(scores, dtype=torch.float64)
    T, E = X_TE.shape
    router = StrictRouter(Strict(top_k=top_k), LayerDims(dim=T, num_experts=E)).double().train(training)
    with torch.no_grad():
        router.weight_ED.copy_(X_TE.log().T)
        router.threshold_E.copy_(torch.tensor(thresholds))
    routing: TokenChoice = router(torch.eye(T, dtype=torch.float64))
    return routing


def sent(routing: TokenChoice) -> list[list[int]]:
    assert routing.sent_TK is not None
    return [row.nonzero().flatten().tolist() for row in routing.sent_TK]


def loss_of(routing: TokenChoice) -> Tensor:
    assert routing.own_loss is not None
    return routing.own_loss.value


# --- training ---------------------------------------------------------------------------------------------------------


def test_every_expert_keeps_its_best_tokens_and_gates_are_renormalised() -> None:
    scores = [[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.2, 0.7, 0.1]]
    routing = scored(scores, [0.5] * 3, top_k=2, training=True)  # m = 2·3/3
    assert sent(routing) == [[0, 1, 2], [0, 2], [1]]  # tokens 0 and 2 tie for expert 2: the earlier wins
    assert routing.load_E().tolist() == [2, 2, 2]
    assert routing.gate_TK[0].tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert routing.gate_TK[1].tolist() == pytest.approx([0.5 / 0.8, 0, 0.3 / 0.8])
    assert routing.gate_TK[2].tolist() == pytest.approx([0, 1, 0])


def test_the_load_is_even_whatever_the_tokens() -> None:
    router = strict(E=8)
    assert router(torch.randn(40, 6) + 5).load_E().tolist() == [10] * 8
    assert router(torch.randn(41, 6) + 5).load_E().tolist() == [10] * 8  # rounded down
    assert router(torch.randn(3, 6)).load_E().tolist() == [1] * 8  # and at least 1


def of_whole_numbers() -> StrictRouter:
    """A router whose logits are sums of whole numbers: equal tokens have equal logits on every machine."""
    router = strict()
    with torch.no_grad():
        router.weight_ED.copy_(router.weight_ED.sign())
    return router


def test_a_tie_goes_to_the_earliest_token() -> None:
    assert sent(of_whole_numbers()(torch.ones(6, 6))) == [[0, 1, 2, 3]] * 3 + [[]] * 3


def test_a_token_that_no_expert_keeps_has_zero_gates_and_leaves_gradients_finite() -> None:
    router = of_whole_numbers()
    routing = router(torch.ones(6, 6))
    assert routing.gate_TK[5].tolist() == [0.0] * 4
    routing.gate_TK.square().sum().backward()
    assert router.weight_ED.grad is not None and router.weight_ED.grad.isfinite().all()


def test_padding_takes_no_place_of_a_valid_token() -> None:
    router, valid_T = strict(), torch.arange(20) % 2 == 0
    x_TD = torch.randn(20, 6)
    alone = router(x_TD[valid_T])
    routing = router(x_TD.masked_fill(~valid_T[:, None], NAN), valid_T=valid_T)
    assert routing.load_E().tolist() == alone.load_E().tolist() == [5] * 4
    assert routing.sent_TK is not None and torch.equal(routing.sent_TK[valid_T], alone.sent_TK)
    torch.testing.assert_close(routing.gate_TK[valid_T], alone.gate_TK)
    torch.testing.assert_close(loss_of(routing), loss_of(alone))
    none = router(x_TD, valid_T=torch.zeros(20, dtype=torch.bool))
    assert none.load_E().tolist() == [0] * 4
    assert loss_of(none) == 0


def test_a_token_with_nan_leaves_other_gates_finite() -> None:
    router, x_TD = strict(), torch.randn(8, 6)
    x_TD[2, 3] = NAN
    others = torch.arange(8) != 2
    for training in (True, False):
        routing = router.train(training)(x_TD)
        assert routing.gate_TK[2].isnan().all() and sent(routing)[2] == [0, 1, 2, 3]  # visible in its output
        assert routing.gate_TK[others].isfinite().all()


# --- evaluation and its thresholds ------------------------------------------------------------------------------------


def test_evaluation_sends_what_is_above_the_threshold() -> None:
    scores = [[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.2, 0.7, 0.1]]
    routing = scored(scores, [0.55, 0.25, 0.35], top_k=2, training=False)
    assert sent(routing) == [[0, 1], [], [1]]
    assert routing.gate_TK[0].tolist() == pytest.approx([0.6 / 0.9, 0.3 / 0.9, 0])
    assert routing.load_E().tolist() == [1, 2, 0]
    assert routing.own_loss is None


def test_in_evaluation_a_token_does_not_depend_on_the_batch() -> None:
    router, x_TD = strict().eval(), torch.randn(9, 6)
    torch.testing.assert_close(router(x_TD).gate_TK[:3], router(x_TD[:3]).gate_TK)
    assert sent(router(x_TD))[:3] == sent(router(x_TD[:3]))


def test_the_threshold_loss_of_a_worked_example() -> None:
    scores = [[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]]  # each expert keeps its best two
    agree = scored(scores, [0.5, 0.5], top_k=1, training=True)
    assert loss_of(agree).item() == pytest.approx(0, abs=1e-12)
    # Token 2 exceeds the threshold of expert 0 too; of expert 1 only token 3 does, so token 2 is missing.
    differ = scored(scores, [0.15, 0.85], top_k=1, training=True)
    assert loss_of(differ).item() == pytest.approx(((0.2 - 0.15) + (0.85 - 0.8)) / 4)


def test_the_threshold_loss_moves_thresholds_towards_the_load_and_nothing_else() -> None:
    router = strict(E=2, top_k=1)
    with torch.no_grad():
        router.threshold_E.copy_(torch.tensor([0.01, 0.99]))  # every token exceeds the first, none the second
    loss = loss_of(router(torch.randn(20, 6)))
    to_threshold, to_weight = torch.autograd.grad(loss, [router.threshold_E, router.weight_ED], allow_unused=True)
    assert to_weight is None
    assert to_threshold.tolist() == pytest.approx([-0.5, 0.5])  # half of the tokens too many; half of them missing


def test_thresholds_learn_the_load_that_training_has() -> None:
    torch.manual_seed(0)
    router, x_TD = strict(E=8), torch.randn(400, 6)
    optimizer = torch.optim.SGD([router.threshold_E], lr=0.02)
    before = (router.eval()(x_TD).load_E() - 100).abs().max()
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(router.train()(x_TD)).backward()
        optimizer.step()
    load_E = router.eval()(x_TD).load_E()
    assert before > 30
    assert (load_E - 100).abs().max() <= 5  # k·T/E = 100
    assert loss_of(router.train()(x_TD)) < 1e-3


def test_a_layer_reports_the_loss_with_its_weight() -> None:
    spec = MoE(router=Strict(top_k=2, threshold_weight=0.25), experts=Ffn(count=4, hidden=5), dispatcher=Grouped())
    layer = MoELayer.from_spec(spec, dim=6)
    y, report = layer(torch.randn(2, 8, 6))
    assert y.isfinite().all()
    assert report.load_E.tolist() == [8] * 4
    assert set(report.losses) == {"router"}
    assert report.losses["router"].weight == 0.25
    torch.testing.assert_close(report.loss(), 0.25 * report.losses["router"].value)
    assert layer.eval()(torch.randn(2, 8, 6))[1].losses == {}


# --- capabilities, weights, no tokens ---------------------------------------------------------------------------------


def test_a_layer_reports_that_the_router_leaks() -> None:
    spec = MoE(router=Strict(top_k=2), experts=Ffn(count=4, hidden=5), dispatcher=Grouped())
    assert spec.leak() == "router Strict"


def test_initialising_weights_keeps_the_thresholds() -> None:
    router = StrictRouter(Strict(top_k=2), LayerDims(dim=200, num_experts=50))
    router.init_weights(Init(std=0.006))
    assert router.weight_ED.std().item() == pytest.approx(0.006, rel=0.05)
    assert router.threshold_E.tolist() == pytest.approx([1 / 50] * 50)


def test_without_tokens_load_and_loss_are_zero() -> None:
    routing = strict()(torch.empty(0, 6))
    assert routing.expert_TK.shape == routing.gate_TK.shape == (0, 4)
    assert routing.load_E().tolist() == [0] * 4
    assert loss_of(routing) == 0
