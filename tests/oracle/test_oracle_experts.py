"""Every expert bank equals its naive reference in fp64, forward and every gradient, under every kind of groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import ExpertBank, Init, LayerDims
from moekit.contracts.layer import Groups, LoopGroups, UniformGroups
from moekit.registry import build
from moekit_dispatchers.grouped.module import GroupedGroups
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.ffn.naive import naive_ffn
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_experts.glu.naive import naive_glu
from moekit_experts.linear import Linear, Logistic
from moekit_experts.linear.module import LinearExperts
from moekit_experts.linear.naive import naive_linear
from moekit_experts.lora import Lora
from moekit_experts.lora.module import LoraExperts
from moekit_experts.lora.naive import naive_lora

Reference = Callable[[Tensor, Tensor], Tensor]


def glu(count: int, dims: LayerDims, activation: str, scaled: bool = False) -> tuple[ExpertBank, Reference]:
    bank = GluExperts(Glu(count=count, hidden=5, activation=activation, scale_bias=scaled), dims).double()
    gate_EHD, up_EHD = bank.w_gate_up_EHD[:, :5], bank.w_gate_up_EHD[:, 5:]
    if bank.scale_EH is not None:
        torch.nn.init.normal_(bank.scale_EH)
    scale_EH = bank.scale_EH
    return bank, lambda x_ND, e_N: naive_glu(x_ND, e_N, gate_EHD, up_EHD, bank.w_down_EOH, activation, scale_EH)


def glu_of_open_models(spec: Glu, dims: LayerDims) -> tuple[ExpertBank, Reference]:
    bank = GluExperts(spec, dims).double()
    H, b_in, w_output = spec.hidden, bank.b_gate_up_EH, bank.w_output_EXD
    naive = partial(
        naive_glu,
        w_gate_EHD=bank.w_gate_up_EHD[:, :H],
        w_up_EHD=bank.w_gate_up_EHD[:, H:],
        w_down_EOH=bank.w_down_EOH,
        activation=spec.activation,
        b_gate_EH=None if b_in is None else b_in[:, :H],
        b_up_EH=None if b_in is None else b_in[:, H:],
        b_down_EO=bank.b_down_EO,
        clamp=spec.clamp or math.inf,
        alpha=spec.alpha,
        up_shift=spec.up_shift,
        w_output_ED=None if w_output is None else w_output[:, 0],
    )
    return bank, lambda x_ND, e_N: naive(x_ND, e_N)


def ffn(count: int, dims: LayerDims, activation: str, bias: bool) -> tuple[ExpertBank, Reference]:
    bank = FfnExperts(Ffn(count=count, hidden=5, activation=activation, bias=bias), dims).double()
    w_up, w_down, b_up, b_down = bank.w_up_EHD, bank.w_down_EOH, bank.b_up_EH, bank.b_down_EO
    return bank, lambda x_ND, e_N: naive_ffn(x_ND, e_N, w_up, w_down, activation, b_up, b_down)


def one_layer(spec: Linear | Logistic, dims: LayerDims) -> tuple[ExpertBank, Reference]:
    bank = LinearExperts(spec, dims).double()
    logistic = isinstance(spec, Logistic)
    return bank, lambda x_ND, e_N: naive_linear(x_ND, e_N, bank.w_EOD, bank.b_EO, logistic=logistic)


def trained(spec: Lora, dims: LayerDims) -> LoraExperts:
    """Adapted experts with adapters that change something, and a base whose gradients are compared too."""
    bank = LoraExperts(spec, dims).double().requires_grad_()
    for name, parameter in bank.adapters.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return bank


def lora_of_linear(count: int, dims: LayerDims) -> tuple[ExpertBank, Reference]:
    bank = trained(Lora(count=count, base=Linear(), rank=3, alpha=2.0), dims)
    own = dict(bank.named_parameters())
    a, b = own["adapters.w_EOD.w_a_EXD"], own["adapters.w_EOD.w_b_EOX"]
    return bank, lambda x_ND, e_N: naive_lora(x_ND, e_N, own["base.w_EOD"], a, b, 2.0, own["base.b_EO"])


def lora_of_glu(count: int, dims: LayerDims) -> tuple[ExpertBank, Reference]:
    bank = trained(Lora(count=count, base=Glu(hidden=5), rank=2, alpha=3.0), dims)
    own = dict(bank.named_parameters())

    def adapted(name: str) -> Tensor:
        """W + alpha / rank · B A, expert by expert."""
        a, b = own[f"adapters.{name}.w_a_EXD"], own[f"adapters.{name}.w_b_EOX"]
        return torch.stack([w + 1.5 * b[e] @ a[e] for e, w in enumerate(own[f"base.{name}"])])

    def naive(x_ND: Tensor, expert_N: Tensor) -> Tensor:
        w_in, w_out = adapted("w_gate_up_EHD"), adapted("w_down_EOH")
        return naive_glu(x_ND, expert_N, w_in[:, :5], w_in[:, 5:], w_out, "silu")

    return bank, naive


BANKS: dict[str, Callable[[int, LayerDims], tuple[ExpertBank, Reference]]] = {
    "glu-silu": lambda count, dims: glu(count, dims, "silu"),
    "glu-gelu": lambda count, dims: glu(count, dims, "gelu"),
    "glu-relu": lambda count, dims: glu(count, dims, "relu"),
    "glu-sigmoid": lambda count, dims: glu(count, dims, "sigmoid"),
    "glu-gelu-scaled": lambda count, dims: glu(count, dims, "gelu", scaled=True),
    "glu-biased": lambda count, dims: glu_of_open_models(Glu(count=count, hidden=5, bias=True), dims),
    "glu-clamped": lambda count, dims: glu_of_open_models(Glu(count=count, hidden=5, clamp=0.2), dims),
    "glu-gpt-oss": lambda count, dims: glu_of_open_models(
        Glu(count=count, hidden=5, bias=True, clamp=0.3, alpha=1.702, up_shift=1.0), dims
    ),
    "glu-output-gate": lambda count, dims: glu_of_open_models(Glu(count=count, hidden=5, output_gate=True), dims),
    "ffn-relu": lambda count, dims: ffn(count, dims, "relu", bias=False),
    "ffn-gelu-bias": lambda count, dims: ffn(count, dims, "gelu", bias=True),
    "ffn-silu-bias": lambda count, dims: ffn(count, dims, "silu", bias=True),
    "linear": lambda count, dims: one_layer(Linear(count=count), dims),
    "linear-no-bias": lambda count, dims: one_layer(Linear(count=count, bias=False), dims),
    "logistic": lambda count, dims: one_layer(Logistic(count=count), dims),
    "lora-linear": lora_of_linear,
    "lora-glu": lora_of_glu,
}


def expert_of_rows(sizes: list[int], spare: int = 0) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes) + 1), torch.tensor([*sizes, spare]))


def grouped(sizes: list[int], spare: int = 0) -> GroupedGroups:
    return GroupedGroups(expert_of_rows(sizes, spare), torch.tensor(sizes).cumsum(0).int())


def assert_agrees(bank: ExpertBank, naive: Reference, groups: Groups, expert_N: Tensor, width: int) -> None:
    """Output and gradients agree on the rows of experts; rows of no expert reach no gradient."""
    x_ND = torch.randn(len(expert_N), width, dtype=torch.float64, requires_grad=True)
    real_N1 = (expert_N < bank.num_experts)[:, None]
    y_NO, want_NO = bank(x_ND, groups).where(real_N1, 0), naive(x_ND, expert_N)
    assert y_NO.shape == (len(expert_N), bank.out_dim)
    assert_agree(y_NO, want_NO, {"x": x_ND, **dict(bank.named_parameters())}, rtol=1e-12, atol=1e-13, looser=1)


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("sizes", [[3, 0, 4], [0, 0, 5], [2, 2, 2], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("groups", ["loop", "grouped"])
def test_bank_equals_naive_under_groups_of_any_size(groups: str, name: str, sizes: list[int], spare: int) -> None:
    bank, naive = BANKS[name](3, LayerDims(dim=4, num_experts=3, out_dim=6))
    made = LoopGroups(sizes, sum(sizes) + spare) if groups == "loop" else grouped(sizes, spare)
    assert_agrees(bank, naive, made, expert_of_rows(sizes, spare), 4)


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_bank_equals_naive_under_uniform_groups(name: str, count: int, rows: int) -> None:
    bank, naive = BANKS[name](count, LayerDims(dim=4, num_experts=count))
    assert_agrees(bank, naive, UniformGroups(count, count * rows), expert_of_rows([rows] * count), 4)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(BANKS)),
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    spare=st.integers(0, 3),
    width=st.integers(1, 9),
    out=st.integers(1, 9),
)
def test_bank_equals_naive_for_any_shape(name: str, sizes: list[int], spare: int, width: int, out: int) -> None:
    bank, naive = BANKS[name](len(sizes), LayerDims(dim=width, num_experts=len(sizes), out_dim=out))
    assert_agrees(bank, naive, grouped(sizes, spare), expert_of_rows(sizes, spare), width)


@pytest.mark.parametrize("name", ["ffn", "glu"])
@pytest.mark.parametrize("dropout", [0.4, 0.0])
def test_dropout_in_training_falls_on_the_hidden_layer(name: str, dropout: float) -> None:
    sizes, dims = [3, 0, 4], LayerDims(dim=4, num_experts=3, out_dim=6)
    expert_N = expert_of_rows(sizes)
    bank: ExpertBank
    if name == "ffn":
        bank = FfnExperts(Ffn(count=3, hidden=5, bias=True, dropout=dropout), dims).double()
    else:
        bank = GluExperts(Glu(count=3, hidden=5, scale_bias=True, dropout=dropout), dims).double()
    torch.manual_seed(3)
    keep_NH = F.dropout(torch.ones(7, 5, dtype=torch.float64), dropout) > 0  # the bank's random numbers
    assert bool(keep_NH.any()) and (dropout == 0) == bool(keep_NH.all())

    def naive(x_ND: Tensor, e_N: Tensor) -> Tensor:
        drop = (keep_NH, dropout) if bank.training else (None, 0.0)
        if isinstance(bank, FfnExperts):
            return naive_ffn(x_ND, e_N, bank.w_up_EHD, bank.w_down_EOH, "relu", bank.b_up_EH, bank.b_down_EO, *drop)
        assert isinstance(bank, GluExperts)
        gate_EHD, up_EHD = bank.w_gate_up_EHD.chunk(2, 1)
        return naive_glu(x_ND, e_N, gate_EHD, up_EHD, bank.w_down_EOH, "silu", bank.scale_EH, *drop)

    for training in (True, False):
        x_ND = torch.linspace(-1, 1, 28, dtype=torch.float64).reshape(7, 4).requires_grad_()
        torch.manual_seed(3)
        y_NO, want_NO = bank.train(training)(x_ND, LoopGroups(sizes)), naive(x_ND, expert_N)
        leaves = {"x": x_ND, **dict(bank.named_parameters())}
        assert_agree(y_NO, want_NO, leaves, rtol=1e-12, atol=1e-13, looser=1)


@pytest.mark.parametrize("bank", [Glu(count=3, hidden=320), Ffn(count=3, hidden=320)])
def test_every_matrix_is_initialised_by_its_own_number_of_inputs(bank: Glu | Ffn) -> None:
    """Switch, section 2.4: std sqrt(s / n) with n the matrix's inputs, truncated at two standard deviations."""
    torch.manual_seed(0)
    experts = build(bank, LayerDims(dim=80, num_experts=3))
    experts.init_weights(Init(scale=0.1))
    truncated = 0.8796  # the standard deviation of a standard normal that is truncated at 2
    for weight in experts.parameters():
        sigma = (0.1 / weight.shape[-1]) ** 0.5
        assert weight.shape[-1] in (80, 320) and weight.abs().max() <= 2 * sigma
        assert abs(weight.std() / sigma - truncated) < 0.02
