"""The LSTM model: outputs, dropout, initial weights, parameter counts, dense baseline, refused options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import Batchwise, Crowding
from torch import Tensor, nn

from moekit.moe_layer import MoELayer
from moekit.params import count_parameters
from moekit.spec.kinds import MoE
from moekit_balancers.load_balance import LoadBalance
from moekit_dispatchers.grouped import Grouped
from moekit_experts.ffn import Ffn
from moekit_experts.linear import Linear
from moekit_models.lstm import LSTM
from moekit_models.lstm.module import LSTMModel, one_bias_lstm
from moekit_routers.topk import TopK

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

VOCAB = 11


def moe_of(**changes: Any) -> MoE:
    parts: dict[str, Any] = {
        "router": TopK(top_k=2, score_over="chosen"),
        "experts": Ffn(count=6, hidden=5),
        "dispatcher": Grouped(),
        "balancers": {"load": LoadBalance(weight=0.1)},
    }
    return MoE(**{**parts, **changes})


def spec_of(**changes: Any) -> LSTM:
    base: dict[str, Any] = {"vocab": VOCAB, "dim": 8, "moe": moe_of(), "init_std": 0.4}
    return LSTM(**{**base, **changes})


def dense_of(**changes: Any) -> LSTM:
    return spec_of(**{"moe": None, "ffn": Ffn(hidden=10), **changes})


SPECS = {"mixture": spec_of(), "projected": spec_of(hidden=12), "dense": dense_of()}


def tokens(B: int = 2, S: int = 9) -> Tensor:
    return torch.randint(VOCAB, (B, S))


def test_the_report_has_the_path_of_its_layer() -> None:
    model = LSTMModel(spec_of())
    out = model(tokens())
    assert out.y.shape == (2, 9, VOCAB)
    assert out.future == ()
    assert list(out.reports) == ["moe"]
    assert isinstance(model.get_submodule("moe"), MoELayer)
    assert int(out.reports["moe"].load_E.sum()) == 2 * 2 * 9  # one layer, every position of every text
    assert set(out.reports["moe"].losses) == {"load"}
    assert LSTMModel(dense_of())(tokens()).reports == {}


def test_texts_of_a_batch_are_independent() -> None:
    model = LSTMModel(spec_of()).double().eval()
    inputs = tokens(B=3)
    for b in range(3):
        torch.testing.assert_close(model(inputs).y[b], model(inputs[b : b + 1]).y[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_dropout_acts_in_training_alone(name: str) -> None:
    model = LSTMModel(replace(SPECS[name], dropout=0.3))
    inputs = tokens()
    assert not torch.equal(model(inputs).y, model(inputs).y)
    model.eval()
    assert torch.equal(model(inputs).y, model(inputs).y)
    plain = LSTMModel(SPECS[name])
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(inputs).y, model(inputs).y)


def test_dropout_applies_to_each_layers_output_but_not_to_the_residual() -> None:
    """To the embedding and three layers, once each."""
    model = LSTMModel(spec_of(dropout=0.5))
    seen: list[Tensor] = []
    model.dropout.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    model(tokens())
    embedded, lower, between, upper = seen
    assert torch.isin(embedded, model.embedding.weight).all()
    assert all(bool((x.abs() < 1).all()) for x in (lower, upper))  # an LSTM's output, without the residual
    assert ((between > 0) & (between < 1)).all()  # a sigmoid's


def test_initial_weights_have_the_given_deviation_and_biases_are_0() -> None:
    model = LSTMModel(spec_of(vocab=200, dim=64, hidden=80, init_std=0.03, moe=moe_of(experts=Ffn(count=6, hidden=32))))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.03, rel=0.12), name


@pytest.mark.parametrize("hidden", [6, 9])
def test_the_second_bias_is_0_and_not_trained(hidden: int) -> None:
    lstm, whole = one_bias_lstm(6, hidden), nn.LSTM(6, hidden, proj_size=6 if hidden > 6 else 0, batch_first=True)
    assert not lstm.bias_hh_l0.any()
    whole.load_state_dict(lstm.state_dict())
    x = torch.randn(2, 4, 6)
    assert torch.equal(lstm(x)[0], whole(x)[0])
    trained = sum(p.numel() for p in lstm.parameters() if p.requires_grad)
    assert trained == 4 * (6 + 6) * hidden + 4 * hidden + (hidden * 6 if hidden > 6 else 0)


def test_parameters_are_counted_by_part() -> None:
    count = count_parameters(spec_of(hidden=12))
    assert count.parts["embedding"] == count.parts["head"] == VOCAB * 8
    assert count.parts["routers"] == 6 * 8
    assert count.parts["routed experts"] == 6 * 2 * 8 * 5
    assert count.parts["other"] == 2 * (4 * 16 * 12 + 4 * 12 + 12 * 8)  # the LSTMs
    assert count.active_parts["routed experts"] == 2 * 2 * 8 * 5
    dense = count_parameters(dense_of())
    assert dense.parts["dense ffn"] == 2 * 8 * 10
    assert dense.total == dense.active()


@pytest.mark.parametrize("shared", [None, Ffn(count=1, hidden=7)], ids=["routed", "shared"])
def test_the_dense_baseline_is_one_wide_expert(shared: Ffn | None) -> None:
    spec = spec_of(moe=moe_of(shared=shared), dropout=0.1, hidden=9)
    baseline = spec.dense_baseline()
    wide = 2 * 5 + (0 if shared is None else 7)
    assert baseline == replace(spec, moe=None, ffn=Ffn(count=1, hidden=wide))
    assert baseline.feed_forward_work() == spec.feed_forward_work() == 2 * 8 * wide
    assert spec.feed_forward_work(1.5) == 2 * 8 * (wide - 0.5 * 5)
    mixture, dense = count_parameters(spec), count_parameters(baseline)
    assert dense.active() == mixture.active() - mixture.active_parts["routers"]
    assert baseline.dense_baseline() is None


def test_experts_without_a_hidden_width_have_no_dense_baseline() -> None:
    assert spec_of(moe=moe_of(experts=Linear(count=6))).dense_baseline() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 7}, r"hidden=7 is less than dim=8: .* set hidden to 8 or more, or to null"),
        ({"moe": None}, r"give moe or ffn \(neither given\)"),
        ({"ffn": Ffn(hidden=4)}, r"give moe or ffn \(both given\)"),
        ({"moe": None, "ffn": Ffn(count=2, hidden=4)}, r"ffn\.count=2 must be 1"),
        ({"moe": moe_of(router=Batchwise(), balancers={})}, "router Batchwise would leak later tokens"),
        (
            {"moe": moe_of(dispatcher=Crowding())},
            "dispatcher Crowding would leak later tokens: .* use grouped, or capacity with order=position",
        ),
        ({"dropout": 1.0}, r"dropout=1.0 is out of range \(>= 0 and < 1\)"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**changes)


def test_gradients_are_finite_under_autocast() -> None:
    model = LSTMModel(spec_of())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(tokens())
    assert out.reports["moe"].routing.scores_TE.dtype == torch.float32
    out.y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
