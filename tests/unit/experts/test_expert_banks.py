"""What holds for every bank of this plugin: sizes, initialisation, standard form; and properties of GLU experts."""

from __future__ import annotations

import pytest
import torch

from moekit.contracts import ExpertBank, Init, LayerDims
from moekit.contracts.layer import UniformGroups
from moekit.registry import build
from moekit.spec.kinds import ExpertSpec
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_experts.linear import Linear, Logistic
from moekit_optimizers.decay import decays

D, H, O, E = 8, 12, 10, 3  # noqa: E741
DIMS = LayerDims(dim=D, num_experts=E, out_dim=O)
SPECS: dict[str, ExpertSpec] = {
    "glu": Glu(count=E, hidden=H),
    "glu, scaled": Glu(count=E, hidden=H, scale_bias=True),
    "ffn": Ffn(count=E, hidden=H),
    "ffn, biases": Ffn(count=E, hidden=H, bias=True),
    "linear": Linear(count=E),
    "linear, no bias": Linear(count=E, bias=False),
    "logistic": Logistic(count=E),
}
PARAMETERS = {
    "glu": 2 * D * H + H * O,  # 3·D·H if O = D
    "glu, scaled": 2 * D * H + H * O + H,
    "ffn": D * H + H * O,
    "ffn, biases": D * H + H * O + H + O,
    "linear": D * O + O,
    "linear, no bias": D * O,
    "logistic": D * O + O,
}


def bank_of(name: str, dims: LayerDims = DIMS) -> ExpertBank:
    bank: ExpertBank = build(SPECS[name], dims)
    return bank


@pytest.mark.parametrize("name", SPECS)
def test_the_number_of_parameters_is_that_of_the_equations(name: str) -> None:
    assert sum(p.numel() for p in bank_of(name).parameters()) == E * PARAMETERS[name]


@pytest.mark.parametrize("name", SPECS)
def test_the_number_of_experts_is_the_specs_not_the_layers(name: str) -> None:
    """A shared expert is built with the dims of the layer, whose E counts the routed experts."""
    bank = bank_of(name, LayerDims(dim=D, num_experts=64, out_dim=O))
    assert bank.num_experts == E and bank.out_dim == O
    assert bank(torch.randn(2 * E, D), UniformGroups(E, 2 * E)).shape == (2 * E, O)


@pytest.mark.parametrize("name", SPECS)
def test_reset_parameters_initialises_a_bank_built_on_meta(name: str) -> None:
    with torch.device("meta"):
        bank = bank_of(name)
    assert all(p.is_meta for p in bank.parameters())
    bank.to_empty(device="cpu")
    torch.manual_seed(0)
    bank.reset_parameters()
    torch.manual_seed(0)
    fresh = bank_of(name)
    for ours, theirs in zip(bank.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", SPECS)
def test_initialisation_is_that_of_nn_linear(name: str) -> None:
    """Uniform between ±1/sqrt(fan-in), weights and biases alike; no two experts the same. Scales are 1."""
    wide = LayerDims(dim=64, num_experts=E, out_dim=48)
    for key, p in bank_of(name, wide).named_parameters():
        if key.startswith("scale_"):
            assert bool((p == 1).all())
            continue
        bound = (H if "down" in key else 64) ** -0.5
        assert 0.9 * bound < float(p.detach().abs().max()) <= bound
        assert abs(float(p.detach().mean())) < 0.2 * bound
        assert not torch.equal(p[0], p[1])


@pytest.mark.parametrize("name", SPECS)
def test_init_weights_initialises_matrices_and_zeroes_biases(name: str) -> None:
    torch.manual_seed(1)
    bank = bank_of(name, LayerDims(dim=64, num_experts=E, out_dim=48))
    for p in bank.parameters():
        torch.nn.init.constant_(p, 7.0)
    bank.init_weights(Init(std=0.02))
    for key, p in bank.named_parameters():
        if key.startswith("b_"):
            assert not p.any()
        elif key.startswith("scale_"):
            assert bool((p == 1).all())
        else:
            assert float(p.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("name", SPECS)
def test_printing_a_bank_shows_its_sizes(name: str) -> None:
    assert f"experts={E}, dim={D}, " in repr(bank_of(name))
    assert f"out={O}" in repr(bank_of(name))


def test_under_autocast_a_scale_keeps_the_hidden_layers_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert bank_of("glu, scaled")(torch.randn(E, D), UniformGroups(E, E)).dtype == torch.bfloat16


def test_weight_decay_excludes_scales_and_biases() -> None:
    layer = {
        f"experts.{key}": p for name in ("glu, scaled", "ffn, biases") for key, p in bank_of(name).named_parameters()
    }
    assert {key for key, p in layer.items() if decays(key, p)} == {
        *("experts.w_gate_up_EHD", "experts.w_up_EHD", "experts.w_down_EOH")
    }


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Glu(hidden=0), r"hidden=0 is out of range \(>= 1\)"),
        (lambda: Glu(hidden=4, count=0), r"count=0 is out of range \(>= 1\)"),
        (lambda: Glu(hidden=4, activation="tanh"), r"'tanh' is out of range \(one of silu, gelu, relu, sigmoid\)"),
        (lambda: Ffn(hidden=4, activation="tanh"), r"'tanh' is out of range \(one of relu, gelu, silu\)"),
        (lambda: Ffn(hidden=-1), r"hidden=-1 is out of range \(>= 1\)"),
        (lambda: Ffn(hidden=4, dropout=1.0), r"dropout=1.0 is out of range \(>= 0 and < 1\)"),
        (lambda: Glu(hidden=4, dropout=-0.1), r"dropout=-0.1 is out of range \(>= 0 and < 1\)"),
        (lambda: Linear(count=0), r"count=0 is out of range \(>= 1\)"),
    ],
)
def test_options_out_of_range_are_rejected(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("bank", "form"),
    [
        (GluExperts(Glu(count=2, hidden=3, activation="gelu"), DIMS), ("gelu", True)),
        (FfnExperts(Ffn(count=2, hidden=3), DIMS), ("relu", False)),
    ],
    ids=["glu", "ffn"],
)
def test_plain_banks_have_a_standard_form(bank: ExpertBank, form: tuple[str, bool]) -> None:
    standard = bank.standard_form()
    assert standard is not None
    assert (standard.activation, standard.gated) == form
    assert {id(standard.w_in_EHD), id(standard.w_out_EOH)} == {id(p) for p in bank.parameters()}


@pytest.mark.parametrize(
    ("bank", "in_evaluation"),
    [
        (GluExperts(Glu(count=2, hidden=3, dropout=0.1), DIMS), True),
        (FfnExperts(Ffn(count=2, hidden=3, dropout=0.1), DIMS), True),
        (GluExperts(Glu(count=2, hidden=3, scale_bias=True), DIMS), False),
        (FfnExperts(Ffn(count=2, hidden=3, bias=True), DIMS), False),
        (ExpertBank.from_modules([torch.nn.Linear(4, 4)], 4), False),
    ],
    ids=["glu with dropout", "ffn with dropout", "scaled", "biased", "modules"],
)
def test_banks_with_extras_have_no_standard_form(bank: ExpertBank, in_evaluation: bool) -> None:
    assert bank.train().standard_form() is None
    assert (bank.eval().standard_form() is not None) == in_evaluation
