"""The triton dispatcher against the loop, in Triton's interpreter or on a GPU.

``test_oracle_triton.py`` runs this file in a process of its own: the interpreter must be chosen before ``triton`` is
imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from routings import token_choice
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.errors import MoekitError
from moekit.routing import ExpertChoice, Routing, TokenChoice
from moekit_dispatchers.grouped import Grouped, ops
from moekit_dispatchers.grouped import rows as movers
from moekit_dispatchers.grouped.module import GroupedDispatcher, sort_pairs
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_dispatchers.triton import Triton, launch
from moekit_dispatchers.triton.blocks import blocks_of, knobs, options
from moekit_dispatchers.triton.module import TritonDispatcher
from moekit_dispatchers.triton.ops import triton_experts, triton_experts_backward
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

DEVICE = os.environ.get("MOEKIT_TRITON_DEVICE", "cpu")
D, OUT, H = 37, 35, 33  # one more than a block of the interpreter, and no multiple of one


def test_the_kernels_run_where_they_should() -> None:
    form = bank("glu", "silu", 2).standard_form()
    assert form is not None
    assert TritonDispatcher(Triton(), LayerDims(dim=D, num_experts=2)).why_not(tokens(1), form) == ""
    assert bool(knobs.runtime.interpret) == (DEVICE == "cpu")


def bank(kind: str, activation: Any, E: int) -> ExpertBank:
    dims = LayerDims(dim=D, num_experts=E, out_dim=OUT)
    if kind == "glu":
        return GluExperts(Glu(count=E, hidden=H, activation=activation), dims).to(DEVICE)
    return FfnExperts(Ffn(count=E, hidden=H, activation=activation), dims).to(DEVICE)


def tokens(T: int) -> Tensor:
    return torch.randn(T, D, device=DEVICE, requires_grad=True)


def routing(expert_TK: Tensor, E: int, valid_T: Tensor | None = None, sent_TK: Tensor | None = None) -> TokenChoice:
    T, K = expert_TK.shape
    zeros_TE = torch.zeros(T, E, device=DEVICE)
    gate_TK = torch.rand(T, K, device=DEVICE)
    if valid_T is not None:
        gate_TK[~valid_T] = torch.nan
    return token_choice(zeros_TE, expert_TK.to(DEVICE), valid_T, gate_TK=gate_TK.requires_grad_(), sent_TK=sent_TK)


def results(dispatcher: Dispatcher, x_TD: Tensor, routed: Routing, gate: Tensor, experts: ExpertBank) -> list[Tensor]:
    """The output, and gradients of tokens, gates and weights under an uneven output gradient; in fp64."""
    y_TO = dispatcher(x_TD, routed, experts).y_TO
    weigh_TO = torch.linspace(-1, 2, y_TO.numel(), device=y_TO.device, dtype=y_TO.dtype).reshape(y_TO.shape)
    leaves = [x_TD, gate, *experts.parameters()]
    grads = torch.autograd.grad(y_TO, leaves, weigh_TO, allow_unused=True, materialize_grads=True)
    return [t.detach().double() for t in (y_TO, *grads)]


def assert_equal(
    x_TD: Tensor,
    routed: TokenChoice | ExpertChoice,
    experts: ExpertBank,
    dtype: torch.dtype,
    bound: float,
    save: Any = "minimum",
) -> None:
    """Against the loop in fp64 on the same (rounded) numbers; ``bound`` is of each result's largest number."""
    dims = LayerDims(dim=D, num_experts=experts.num_experts, out_dim=OUT)
    gate = routed.gate_TK if isinstance(routed, TokenChoice) else routed.gate_EC
    experts, x_TD = experts.to(dtype), x_TD.detach().to(dtype).requires_grad_()
    found = results(TritonDispatcher(Triton(save=save), dims), x_TD, routed, gate, experts)
    x64_TD, gate64 = (t.detach().double().requires_grad_() for t in (x_TD, gate))
    routed64 = replace(routed, gate_TK=gate64) if isinstance(routed, TokenChoice) else replace(routed, gate_EC=gate64)
    expected = results(LoopDispatcher(Loop(), dims), x64_TD, routed64, gate64, experts.double())
    for name, a, b in zip(("y", "tokens", "gates", "w_in", "w_out"), found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a.isnan(), b.isnan()), name
        worst = (a - b).abs().max().item() / max(b.abs().max().item(), 1e-3) if a.numel() else 0.0
        assert worst <= bound, f"{name}: {worst:.2e}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def any_experts(T: int, E: int, K: int) -> Tensor:
    return torch.rand(T, E).argsort(1)[:, :K]


def sweep(every: Iterable[tuple[Any, ...]], quick: list[tuple[Any, ...]]) -> list[Any]:
    """All cases; those that are not quick run in ``pytest -m slow``, and on GPUs."""
    every = list(every)
    assert set(quick) < set(every)
    return [pytest.param(*case, marks=[] if case in quick else pytest.mark.slow) for case in every]


BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 3e-2}  # the interpreter truncates bf16 instead of rounding


@pytest.mark.parametrize(
    ("kind", "activation"),
    sweep(
        [("glu", a) for a in ("silu", "gelu", "relu", "sigmoid")] + [("ffn", a) for a in ("relu", "gelu", "silu")],
        quick=[("glu", "silu"), ("glu", "sigmoid"), ("ffn", "relu")],  # other quick cases cover the others
    ),
)
def test_every_bank_equals_the_loop(kind: str, activation: str) -> None:
    assert_equal(tokens(7), routing(any_experts(7, 3, 2), 3), bank(kind, activation, 3), torch.float32, 1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # the interpreter multiplies with NumPy
def test_a_relu_of_minus_infinity_is_zero() -> None:
    """A hidden unit that overflows, as fp16 does below -65504."""
    experts = bank("ffn", "relu", 2)
    with torch.no_grad():
        next(iter(experts.parameters()))[:, 0] = -1e38
    assert_equal(tokens(5).abs(), routing(any_experts(5, 2, 1), 2), experts, torch.float32, 1e-5)


@pytest.mark.parametrize(
    ("kind", "activation", "dtype"),
    sweep(
        [(*bank, dtype) for bank in (("glu", "silu"), ("ffn", "gelu")) for dtype in BOUNDS],
        quick=[("glu", "silu", torch.bfloat16), ("ffn", "gelu", torch.float16)],
    ),
)
def test_half_precision_is_within_its_bounds(kind: str, activation: str, dtype: torch.dtype) -> None:
    assert_equal(tokens(7), routing(any_experts(7, 3, 2), 3), bank(kind, activation, 3), dtype, BOUNDS[dtype])


@pytest.mark.parametrize(
    ("kind", "activation", "save", "dtype"),
    sweep(
        [
            (*bank, save, dtype)
            for bank in (("glu", "gelu"), ("ffn", "silu"))
            for save in ("all", "nothing")
            for dtype in (torch.float32, torch.float16)
        ],
        quick=[
            ("glu", "gelu", "all", torch.float32),
            ("glu", "gelu", "nothing", torch.float32),
            ("ffn", "silu", "nothing", torch.float16),
        ],
    ),
)
def test_results_do_not_depend_on_what_is_saved(kind: str, activation: str, save: str, dtype: torch.dtype) -> None:
    routed = routing(any_experts(9, 4, 2), 4, sent_TK=(torch.rand(9, 2) > 0.3).to(DEVICE))
    assert_equal(tokens(9), routed, bank(kind, activation, 4), dtype, BOUNDS.get(dtype, 1e-5), save)


@pytest.mark.parametrize(
    ("T", "E", "K"),
    sweep(
        [(0, 3, 2), (1, 1, 1), (1, 5, 5), (19, 4, 1), (9, 3, 3), (40, 2, 2)],
        quick=[(0, 3, 2), (1, 1, 1), (1, 5, 5), (19, 4, 1)],
    ),
)
def test_any_number_of_tokens_experts_and_choices(T: int, E: int, K: int) -> None:
    assert_equal(tokens(T), routing(any_experts(T, E, K), E), bank("glu", "silu", E), torch.float32, 1e-5)


def test_all_tokens_on_the_same_experts_and_none_on_the_rest() -> None:
    """Tiles: several for one expert, the last of them in part, and more than are needed."""
    expert_TK = torch.tensor([1, 3]).expand(20, 2)
    assert_equal(tokens(20), routing(expert_TK, 6), bank("glu", "silu", 6), torch.float32, 1e-5)


@pytest.mark.parametrize("kind", ["glu", "ffn"])
def test_padding_and_pairs_that_are_not_sent_reach_nothing(kind: str) -> None:
    valid_T = (torch.rand(13) > 0.4).to(DEVICE)
    sent_TK = (torch.rand(13, 2) > 0.3).to(DEVICE)
    x_TD = torch.where(valid_T[:, None], tokens(13), torch.nan)
    routed = routing(any_experts(13, 4, 2), 4, valid_T, sent_TK)
    assert_equal(x_TD, routed, bank(kind, "relu", 4), torch.float32, 1e-5)


@pytest.mark.parametrize("sizes", [[0], [5], [16, 0, 17], [0, 0, 0, 31], [1, 0, 17] * 14, [33, 2, 0]])
@pytest.mark.parametrize("unsent", [0, 7])
def test_tiles_hold_every_row_once_and_rows_of_one_expert(sizes: list[int], unsent: int) -> None:
    end_E = torch.tensor(sizes, device=DEVICE).cumsum(0).int()
    cut = launch.tiles(end_E, sum(sizes) + unsent, 16)
    rows, ends = [], end_E.tolist()
    for expert, row in zip(cut.expert_X.tolist(), cut.row_X.tolist(), strict=True):
        if expert < len(sizes):
            assert ends[expert] - sizes[expert] <= row < ends[expert]
            rows += range(row, min(row + 16, ends[expert]))
    assert rows == list(range(sum(sizes)))


def test_a_batch_of_padding_alone_equals_the_loop() -> None:
    routed = routing(any_experts(5, 3, 2), 3, torch.zeros(5, dtype=torch.bool, device=DEVICE))
    assert_equal(tokens(5), routed, bank("glu", "silu", 3), torch.float32, 1e-5)


def test_a_nan_stays_with_its_token() -> None:
    x_TD = tokens(6).detach()
    x_TD[2] = torch.nan
    dims = LayerDims(dim=D, num_experts=2, out_dim=OUT)
    y_TO = TritonDispatcher(Triton(), dims)(x_TD, routing(any_experts(6, 2, 2), 2), bank("glu", "relu", 2)).y_TO
    assert y_TO.isnan().any(1).tolist() == [False, False, True, False, False, False]


def test_expert_choice_equals_the_loop() -> None:
    zeros_TE = torch.zeros(9, 4, device=DEVICE)
    token_EC = torch.stack([torch.randperm(9)[:5] for _ in range(4)]).to(DEVICE)
    gate_EC = torch.rand(4, 5, device=DEVICE, requires_grad=True)
    routed = ExpertChoice(logits_TE=zeros_TE, scores_TE=zeros_TE, token_EC=token_EC, gate_EC=gate_EC)
    assert_equal(tokens(9), routed, bank("glu", "silu", 4), torch.float32, 1e-5)


def test_tokens_and_weights_may_be_non_contiguous() -> None:
    experts, x_TD = bank("glu", "silu", 3), torch.randn(2 * D, 9, device=DEVICE)[::2].T
    for p in experts.parameters():
        p.data = p.data.mT.contiguous().mT
    assert not x_TD.is_contiguous()
    assert not any(p.is_contiguous() for p in experts.parameters())
    dims = LayerDims(dim=D, num_experts=3, out_dim=OUT)
    routed = routing(any_experts(9, 3, 2), 3)
    leaf_TD = x_TD.detach().requires_grad_()
    found, expected = (
        results(d, leaf_TD, routed, routed.gate_TK, experts)
        for d in (TritonDispatcher(Triton(), dims), LoopDispatcher(Loop(), dims))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trained", ["tokens", "gates", "w_in", "w_out", "tokens and w_out", "gates and w_in"])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    x_TD, experts = tokens(7), bank("ffn", "gelu", 3)
    routed = routing(any_experts(7, 3, 2), 3)
    leaves = dict(zip(("tokens", "gates", "w_in", "w_out"), (x_TD, routed.gate_TK, *experts.parameters()), strict=True))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in trained.split())
    dims = LayerDims(dim=D, num_experts=3, out_dim=OUT)
    found, expected = (
        torch.autograd.grad(
            d(x_TD, routed, experts).y_TO.sum(), [leaf for leaf in leaves.values() if leaf.requires_grad]
        )
        for d in (TritonDispatcher(Triton(), dims), LoopDispatcher(Loop(), dims))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    sweep(
        [(kind, dtype) for kind in ("glu", "ffn") for dtype in (torch.float32, *BOUNDS)],
        quick=[("ffn", torch.float32), ("glu", torch.bfloat16)],
    ),
)
@pytest.mark.parametrize("sent", ["all", "some"])
def test_grouped_computes_by_these_kernels_where_torch_has_none(
    sent: str, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Banks with biases, which have no standard form."""
    monkeypatch.setattr(ops, "_has_grouped_mm", lambda t, num_experts: False)
    for module in (ops, movers):
        monkeypatch.setattr(module, "kernels_take", lambda t: True)
        monkeypatch.setattr(module, "on_host", lambda t: False)
    monkeypatch.setattr(ops, "_slices", None)  # what reads the ends on the host
    dims = LayerDims(dim=D, num_experts=3, out_dim=OUT)
    experts: ExpertBank = (
        GluExperts(Glu(count=3, hidden=H, bias=True), dims)
        if kind == "glu"
        else FfnExperts(Ffn(count=3, hidden=H, activation="gelu", bias=True), dims)
    ).to(DEVICE, dtype)
    sent_TK = (torch.rand(9, 2) > 0.3).to(DEVICE) if sent == "some" else None
    routed, x_TD = routing(any_experts(9, 3, 2), 3, sent_TK=sent_TK), tokens(9).detach().to(dtype).requires_grad_()
    found = results(GroupedDispatcher(Grouped(), dims), x_TD, routed, routed.gate_TK, experts)
    gate64_TK, x64_TD = (t.detach().double().requires_grad_() for t in (routed.gate_TK, x_TD))
    routed64 = replace(routed, gate_TK=gate64_TK)
    expected = results(LoopDispatcher(Loop(), dims), x64_TD, routed64, gate64_TK, experts.double())
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a - b).abs().max().item() <= BOUNDS.get(dtype, 1e-5) * b.abs().max().item(), f"tensor {i}"


def test_results_are_deterministic() -> None:
    dims = LayerDims(dim=D, num_experts=3, out_dim=OUT)
    x_TD, routed, experts = tokens(5), routing(any_experts(5, 3, 3), 3), bank("glu", "silu", 3)
    first, second = (results(TritonDispatcher(Triton(), dims), x_TD, routed, routed.gate_TK, experts) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_computes_in_its_dtype() -> None:
    dims = LayerDims(dim=D, num_experts=3, out_dim=OUT)
    x_TD, routed, experts = tokens(9), routing(any_experts(9, 3, 2), 3), bank("glu", "silu", 3)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y_TO = TritonDispatcher(Triton(), dims)(x_TD, routed, experts).y_TO
    expected_TO = LoopDispatcher(Loop(), dims)(x_TD, routed, experts).y_TO
    assert y_TO.dtype == torch.bfloat16
    torch.testing.assert_close(y_TO.float(), expected_TO, rtol=2e-2, atol=1e-2)
    assert torch.autograd.grad(y_TO.float().sum(), x_TD)[0].dtype == torch.float32


def test_fp32_is_exact_unless_torchs_own_products_are_not() -> None:
    """Results differ on a GPU alone; the interpreter computes both alike."""
    said = []
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            said.append(options(tokens(1), blocks_of(torch.float32, 16), 16, 16, 16)["PRECISION"])
    finally:
        torch.set_float32_matmul_precision("highest")
    assert said == ["ieee", "tf32", "tf32"]


def test_a_second_derivative_is_rejected() -> None:
    dims = LayerDims(dim=D, num_experts=2, out_dim=OUT)
    x_TD = tokens(4)
    y_TO = TritonDispatcher(Triton(), dims)(x_TD, routing(any_experts(4, 2, 1), 2), bank("glu", "silu", 2)).y_TO
    (dx_TD,) = torch.autograd.grad(y_TO.square().sum(), x_TD, create_graph=True)
    with pytest.raises(MoekitError, match="differentiable once; 'grouped' has"):
        dx_TD.sum().backward()


def test_it_compiles_into_one_graph() -> None:
    dims = LayerDims(dim=D, num_experts=3, out_dim=OUT)
    dispatcher, experts, routed = (
        TritonDispatcher(Triton(), dims),
        bank("glu", "silu", 3),
        routing(any_experts(9, 3, 2), 3),
    )

    def run(x_TD: Tensor, gate_TK: Tensor) -> Tensor:
        y_TO: Tensor = dispatcher(x_TD, replace(routed, gate_TK=gate_TK), experts).y_TO
        return y_TO

    x_TD = tokens(9)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [x_TD, routed.gate_TK, *experts.parameters()]
    pairs = [(y := f(x_TD, routed.gate_TK), *torch.autograd.grad(y.square().sum(), leaves)) for f in (compiled, run)]
    torch.testing.assert_close(pairs[0], pairs[1])


@pytest.mark.parametrize("save", sweep([("all",), ("minimum",), ("nothing",)], quick=[("minimum",)]))
def test_operators_are_registered_as_they_behave(save: str) -> None:
    routed, experts = routing(any_experts(5, 3, 2), 3), bank("glu", "silu", 3)
    rows = sort_pairs(routed.pairs(), 5, 3)
    route = (rows.end_E, *rows.by_token[:3])
    gate_N, (w_in_EXD, w_out_EOH) = torch.rand(10, device=DEVICE, requires_grad=True), experts.parameters()
    arguments = (tokens(5), gate_N, w_in_EXD, w_out_EOH)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton_experts, (*arguments, *route, "silu", save), test_utils=checks)
    g_TO = torch.randn(5, OUT, device=DEVICE)
    h_NX = torch.randn(0 if save == "nothing" else 10, 2 * H, device=DEVICE)
    acted_NH = torch.randn(10 if save == "all" else 0, H, device=DEVICE)
    plain = [t.detach() for t in arguments]
    for needs in [(True, True, True), (False, True, False)]:
        given = (g_TO, *plain, h_NX, acted_NH, *route, "silu", save, *needs)
        torch.library.opcheck(triton_experts_backward, given, test_utils=checks)


def kept(save: Any, x_TD: Tensor, routed: TokenChoice, experts: ExpertBank) -> int:
    """Elements saved for backward besides the weights; a storage counts once."""
    weights = {p.data_ptr() for p in experts.parameters()}
    seen: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if t.is_floating_point() and t.data_ptr() not in weights:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    dims = LayerDims(dim=D, num_experts=3, out_dim=OUT)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y_TO = TritonDispatcher(Triton(save=save), dims)(x_TD, routed, experts).y_TO
    assert y_TO.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize(("kind", "width"), [("glu", 2 * H), ("ffn", H)])
def test_exactly_what_the_option_save_says_is_saved(kind: str, width: int) -> None:
    """Tokens and gates, T·D + N; with ``minimum`` the first product's output; with ``all`` the activation's too."""
    x_TD, routed, experts = tokens(12), routing(any_experts(12, 3, 2), 3), bank(kind, "silu", 3)
    bare = 12 * D + 24
    assert kept("nothing", x_TD, routed, experts) == bare
    assert kept("minimum", x_TD, routed, experts) == bare + 24 * width
    assert kept("all", x_TD, routed, experts) == bare + 24 * (width + H)


def test_without_autograd_nothing_is_saved() -> None:
    x_TD, routed, experts = tokens(5), routing(any_experts(5, 3, 2), 3), bank("glu", "silu", 3)
    dispatcher = TritonDispatcher(Triton(save="all"), LayerDims(dim=D, num_experts=3, out_dim=OUT))
    usual_TO = dispatcher(x_TD, routed, experts).y_TO
    made: list[tuple[int, ...]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made.extend(t.shape for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point())
            return out

    with torch.no_grad(), Watch():
        y_TO = dispatcher(x_TD, routed, experts).y_TO
    assert torch.equal(y_TO, usual_TO)
    assert (10, 2 * H) not in made
