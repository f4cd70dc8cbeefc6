"""All dispatchers against plain loops in fp64, forward and gradients, over corner cases sampled by a seed.

Corners: no tokens, one expert, K = E, idle experts, all tokens on the same experts, capacities of 1, budgets of 0,
padding, choices that are not sent, inputs and gates in odd memory layouts; fp64, fp32, bf16.

    pytest -m slow tests/attack/test_corner_dispatchers.py        # 24,000 comparisons, about four minutes
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from moekit.compat import has_onednn
from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import UniformGroups
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit.spec.kinds import DispatcherSpec, ExpertSpec
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.auto import module as auto
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.fused import Fused
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.textbook import Textbook
from moekit_dispatchers.triton import Triton
from moekit_experts.ffn import Ffn
from moekit_experts.glu import Glu
from moekit_testing.fixtures.reference import naive_sum

WIDTHS = ((8, 6, 5), (16, 8, 24))
"""Of inputs, outputs and hidden units: grouped products and those of oneDNN take the second alone."""

BIG = 10**6
WITHIN = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.1}
"""Of the largest value of a tensor; in bf16 about 25 roundings of 2**-8. A gate's gradient is a sum over an expert's
outputs that may cancel, so there it is of the largest sum of absolute outputs."""

DROPLESS: dict[str, DispatcherSpec] = {
    "loop": Loop(),
    "grouped": Grouped(),
    "triton": Triton(),
    "auto": Auto(),
    "textbook": Textbook(),
    "fused": Fused(),
    "fused saving all": Fused(save="all"),
    "fused saving nothing": Fused(save="nothing"),
    "fused by oneDNN": Fused(products="onednn" if has_onednn() else "torch"),
    "fused by oneDNN, saving nothing": Fused(products="onednn" if has_onednn() else "torch", save="nothing"),
    "expert_parallel": ExpertParallel(local=Grouped()),
    "ample capacity": Capacity(slots=BIG),
    "ample factor": Capacity(factor=1e6),
    "ample budget": DeviceCapacity(groups=1, budget=BIG, exempt=0, inner=Loop()),
}
DROPPING: dict[str, tuple[DispatcherSpec, int | None, int | None]] = {
    "one slot": (Capacity(slots=1), 1, None),
    "two slots": (Capacity(slots=2), 2, None),
    "least factor": (Capacity(factor=1e-6), 1, None),
    "no budget": (DeviceCapacity(groups=1, budget=0, exempt=0, inner=Grouped()), None, 0),
    "budget of three": (DeviceCapacity(groups=1, budget=3, exempt=0, inner=Grouped()), None, 3),
    "budget, then a slot": (DeviceCapacity(groups=1, budget=3, exempt=0, inner=Capacity(slots=1)), 1, 3),
}
"""Dispatchers that drop: with the slots of an expert, and the budget of all experts together."""

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": lambda t: t.mT.contiguous().mT,
    "every second": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "within wider rows": lambda t: torch.nn.functional.pad(t, (3, 2))[:, 3:-2],
    "expanded": lambda t: t[:1].expand_as(t),
}


@dataclass(frozen=True)
class Corner:
    """One case: ``describe`` is printed when a comparison fails."""

    describe: str
    x_TD: Tensor
    routing: TokenChoice
    bank: ExpertBank
    dims: LayerDims


def corner(seed: int) -> Corner:
    """A case, a function of its seed alone."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    E, T = rng.choice([1, 2, 3, 8]), rng.choice([0, 1, 2, 5, 13])
    K = rng.choice([1, min(2, E), E])
    dtype = rng.choice(list(WITHIN))
    load = rng.choice(["random", "all on the same", "half of the experts idle"])
    D, O, H = rng.choice(WIDTHS)  # noqa: E741
    layout, gate_layout = rng.choice(list(LAYOUTS)), rng.choice(["contiguous", "transposed", "expanded"])
    padding, sending = rng.choice(["none", "some", "all"]), rng.choice(["all", "some", "none"])
    spec: ExpertSpec = Glu(count=E, hidden=H) if rng.random() < 0.6 else Ffn(count=E, hidden=H, activation="gelu")
    key_TE = torch.rand(T, E)
    if load == "half of the experts idle":
        key_TE[:, max(K, E // 2) :] -= 2
    if load == "all on the same":
        key_TE = key_TE[:1].expand(T, E)
    expert_TK = key_TE.argsort(1, descending=True)[:, :K]
    scores_TE = torch.rand(T, E, dtype=torch.promote_types(dtype, torch.float32)) + 0.1
    routing = TokenChoice(
        logits_TE=scores_TE,
        scores_TE=scores_TE,
        valid_T={"none": None, "some": torch.rand(T) < 0.6, "all": torch.zeros(T, dtype=torch.bool)}[padding],
        expert_TK=expert_TK,
        gate_TK=LAYOUTS[gate_layout](scores_TE.gather(1, expert_TK)),
        sent_TK={"all": None, "some": torch.rand(T, K) < 0.7, "none": torch.zeros(T, K, dtype=torch.bool)}[sending],
    )
    x_TD = LAYOUTS[layout](torch.randn(T, D, dtype=dtype))
    dims = LayerDims(dim=D, num_experts=E, out_dim=O)
    bank: ExpertBank = build(spec, dims).to(dtype)
    return Corner(
        f"seed {seed}: {T} tokens, {E} experts, K {K}, {dtype}, {load}, x {layout}, gates {gate_layout}, "
        f"padding {padding}, sent {sending}, {type(spec).__name__}, widths {D}, {O}, {H}",
        x_TD,
        routing,
        bank,
        dims,
    )


def kept_by(routing: TokenChoice, slots: int | None, budget: int | None) -> Tensor:
    """``kept_TE`` of first come, first served within the highest affinities of the budget."""
    T, E = routing.scores_TE.shape
    counts_TK = routing.counts_TK()
    pairs = [
        (t, k, int(routing.expert_TK[t, k]))
        for t in range(T)
        for k in range(routing.expert_TK.shape[1])
        if counts_TK is None or counts_TK[t, k]
    ]
    if budget is not None:
        pairs = sorted(sorted(pairs, key=lambda pair: -float(routing.scores_TE[pair[0], pair[2]]))[:budget])
    kept_TE, used = torch.zeros(T, E, dtype=torch.bool), [0] * E
    for t, _, e in pairs:
        kept_TE[t, e] = slots is None or used[e] < slots
        used[e] += 1
    return kept_TE


def run(
    case: Corner, bank: ExpertBank, dtype: torch.dtype, compute: Callable[[Tensor, TokenChoice, ExpertBank], Tensor]
) -> dict[str, Tensor]:
    """The output, and the gradients of a fixed combination of it; x and gates keep their memory layouts."""
    x_TD = case.x_TD.detach().to(dtype) if dtype != case.x_TD.dtype else case.x_TD.detach()
    gate_TK = case.routing.gate_TK.detach()
    gate_TK = gate_TK.to(dtype) if dtype == torch.float64 else gate_TK
    x_TD, gate_TK = x_TD.view_as(x_TD).requires_grad_(), gate_TK.view_as(gate_TK).requires_grad_()
    y_TO = compute(x_TD, replace(case.routing, gate_TK=gate_TK), bank)
    mix_TO = torch.arange(1, y_TO.numel() + 1, dtype=torch.float64).view(y_TO.shape).cos().to(y_TO.dtype)
    leaves = {"x": x_TD, "gates": gate_TK, **dict(bank.named_parameters())}
    total = (y_TO * mix_TO).sum()
    grads = (
        torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        if total.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves.values()]
    )
    return {"y": y_TO.detach(), **{f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}}


def largest_output(case: Corner, exact: ExpertBank) -> float:
    """The largest sum of absolute outputs of any expert for any token."""
    x_ND = case.x_TD.detach().double().repeat(exact.num_experts, 1)
    with torch.no_grad():
        sums_N = exact(x_ND, UniformGroups(exact.num_experts, len(x_ND))).abs().sum(1)
    return float(sums_N.max()) if len(x_ND) else 0.0


def compare(
    case: Corner, name: str, found: dict[str, Tensor], expected: dict[str, Tensor], largest_output: float
) -> None:
    for what, want in expected.items():
        got, within = found[what].double(), WITHIN[case.x_TD.dtype]
        assert got.shape == want.shape, f"{name}, {what}: {list(got.shape)}; {case.describe}"
        apart = float((got - want).abs().max()) if want.numel() else 0.0
        largest = float(want.abs().max()) if want.numel() else 0.0
        if what == "gradient of gates" and largest:
            largest = largest_output
        assert apart <= within * largest, f"{name}, {what}: {apart:.2e} apart, of {largest:.2e}; {case.describe}"


def dispatched(
    dispatcher: Dispatcher, dropped: list[Tensor], x_TD: Tensor, routing: TokenChoice, bank: ExpertBank
) -> Tensor:
    """The dispatcher's output; appends the number of dropped pairs to ``dropped``."""
    out: Dispatched = dispatcher(x_TD, routing, bank)
    dropped.append(out.dropped)
    return out.y_TO


def comparisons(seeds: range) -> Iterator[str]:
    """Compares every dispatcher in every case; gives the names of those compared."""
    for seed in seeds:
        case = corner(seed)
        exact = deepcopy(case.bank).double()
        dims = case.dims
        most = largest_output(case, exact)
        plain: dict[tuple[int | None, int | None], dict[str, Tensor]] = {}
        limits = {name: (spec, None, None) for name, spec in DROPLESS.items()} | DROPPING
        for name, (spec, slots, budget) in limits.items():
            if (slots, budget) not in plain:
                kept_TE = kept_by(case.routing, slots, budget)
                plain[slots, budget] = run(
                    case, exact, torch.float64, lambda x, r, bank, kept=kept_TE: naive_sum(x, r, bank, kept_TE=kept)
                )
            dispatcher = build(spec, dims)
            if isinstance(spec, Fused) and case.bank.standard_form() is None:
                continue
            dropped: list[Tensor] = []
            found = run(case, case.bank, case.x_TD.dtype, partial(dispatched, dispatcher, dropped))
            compare(case, name, found, plain[slots, budget], most)
            kept = int(kept_by(case.routing, slots, budget).sum())
            assert int(dropped[0]) == int(case.routing.load_E().sum()) - kept, f"{name}: dropped; {case.describe}"
            yield name


RULES = {"grouped": (0, 1 << 60), "fused": (0, 0), "textbook": (1 << 60, 1 << 60)}
"""What ``auto`` prefers with which values of TEXTBOOK_UP_TO and FUSED_FROM."""


def prefer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEKIT_AUTO", "fixed")
    for rule, value in zip(("TEXTBOOK_UP_TO", "FUSED_FROM"), RULES[name], strict=True):
        monkeypatch.setattr(auto, rule, value)


@pytest.mark.parametrize("name", RULES)
def test_every_dispatcher_equals_plain_loops_in_corner_cases(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``auto`` prefers grouped, fused or textbook."""
    prefer(name, monkeypatch)
    start = 1000 * list(RULES).index(name)
    names = list(comparisons(range(start, start + 10)))
    assert set(names) >= set(DROPLESS) | set(DROPPING) and len(names) > 120


@pytest.mark.slow
def test_24_000_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    for block in range(102):
        prefer(list(RULES)[block % 3], monkeypatch)
        count += sum(1 for _ in comparisons(range(20_000 + 14 * block, 20_000 + 14 * (block + 1))))
    assert count >= 24_000
