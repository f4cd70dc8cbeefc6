"""Every dispatcher against ``loop`` in fp64: by dtype, at odd widths, with idle experts, around 1,024 experts.

Before each pass the memory that it will get is filled with NaN, so that what is never written shows. The bound is that
of docs/conventions.md: ``√(R / 3) · u`` of a tensor's norm after R roundings of at most u, twice as many for gradients.
In fp32 partial sums are rounded too, so R grows with the widths. ``SLACK`` covers tensors of few numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from gpu.case import Case, Result, Where
from moekit import build
from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.routing import TokenChoice
from moekit.spec.kinds import DispatcherSpec, ExpertSpec
from moekit.spec.loading import component_spec

SLACK = 2.0
NAMES = ("grouped", "triton", "auto", "capacity", "textbook")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A layer and its routing.

    Attributes:
        T, D, H, E, K: as in docs/conventions.md.
        among: experts that are chosen from; 0 for all.
        experts: ``glu``, or ``ffn`` with biases.
        padded: share of tokens that are padding.
    """

    T: int = 192
    D: int = 64
    H: int = 32
    E: int = 8
    K: int = 2
    among: int = 0
    experts: str = "glu"
    padded: float = 0.0


SIZES = {
    "even widths": Size(),
    "odd widths": Size(D=37, H=33, T=191),
    "idle experts": Size(E=64, among=3),
    "padding": Size(padded=0.4),
    "nothing but padding": Size(padded=1.0, T=40),
    "biases": Size(experts="ffn"),
    "one token": Size(T=1),
    "1,023 experts": Size(T=256, D=16, H=8, E=1023),
    "1,024 experts": Size(T=256, D=16, H=8, E=1024),
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How numbers are stored and multiplied.

    Attributes:
        dtype: of tokens and weights.
        autocast: of products; None without autocast.
        unit: u.
    """

    dtype: torch.dtype
    autocast: torch.dtype | None = None
    unit: float

    @property
    def narrow(self) -> torch.dtype:
        """The narrowest of the two. Tokens and weights are numbers that it holds exactly."""
        return self.autocast or self.dtype


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KINDS = {
    "bf16 autocast": Kind(dtype=F32, autocast=BF16, unit=2.0**-8),
    "bf16": Kind(dtype=BF16, unit=2.0**-8),
    "fp32": Kind(dtype=F32, unit=2.0**-24),
    "fp16 autocast": Kind(dtype=F32, autocast=F16, unit=2.0**-11),
    "fp16": Kind(dtype=F16, unit=2.0**-11),
}
EXACT = Kind(dtype=torch.float64, unit=0.0)


def cases(where: Where) -> Iterator[Case]:
    """Guards of single operators first, then every dispatcher in every dtype at every size."""
    if where.rehearsal:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
        os.environ["MOEKIT_AUTO"] = "fixed"  # it would time the interpreter
    yield Case(name="new memory holds NaN", run=lambda: poisoned(where))
    for name, views in (("rows that lie column by column", columns), ("rows that start at eight bytes", shifted)):
        yield Case(name=f"grouped products of {name}", run=lambda views=views: products(where, views))  # type: ignore[misc]
    yield Case(name="weight gradients of idle experts are 0", run=lambda: idle(where))
    names = where.size(NAMES, (*NAMES, "fused"))  # which is for CPUs
    for dispatcher, (kind, how), (name, size) in product(names, KINDS.items(), SIZES.items()):
        if dispatcher == "auto" and kind not in ("bf16 autocast", "fp32"):
            continue  # it times its candidates once for each
        yield Case(
            name=f"{dispatcher}, {kind}, {name}",
            run=lambda d=dispatcher, k=how, s=size: compare(where, d, k, s),  # type: ignore[misc]
        )


# ---- dispatchers ----------------------------------------------------------------------------------------------------


def compare(where: Where, name: str, kind: Kind, size: Size) -> Result:
    """The largest error of output and gradients, as a share of its bound."""
    if where.rehearsal and name == "triton" and (size.E > 8 or kind.narrow == F16):
        return Result(note="skipped: its interpreter would take minutes")
    exact = exactly(size, kind.narrow)
    poison(where)
    ours = values(size, name, kind, kind.narrow, where.device)
    rounded = 9 + size.K + (size.D + size.H if kind.narrow == F32 else 0)
    truncates = where.rehearsal and name == "triton" and kind.narrow == BF16  # the interpreter does not round
    slack = SLACK * (2 if truncates else 1)
    worst, which = 0.0, ""
    for tensor, right in exact.items():
        roundings = rounded * (1 if tensor == "output" else 2)
        bound = slack * (roundings / 3) ** 0.5 * kind.unit * float(right.norm())
        error = float((ours[tensor] - right).norm())
        share = error / bound if bound else float(error != 0)
        if not share <= worst:  # NaN too
            worst, which = share, tensor
    return Result(
        ok=worst <= 1, note="" if worst <= 1 else f"{which} is wrong", figures={"of the bound": round(worst, 3)}
    )


@lru_cache(maxsize=64)
def exactly(size: Size, held: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients by ``loop`` in fp64 on the CPU."""
    return values(size, "loop", EXACT, held, "cpu")


def values(size: Size, name: str, kind: Kind, held: torch.dtype, device: str) -> dict[str, Tensor]:
    """The output and all gradients, on the CPU in fp64; tokens and weights are numbers that ``held`` holds exactly."""
    torch.manual_seed(0)
    T, E = size.T, size.E
    dims = LayerDims(dim=size.D, num_experts=E)
    more = {"bias": True, "activation": "silu"} if size.experts == "ffn" else {}
    spec = component_spec("expert", {"use": size.experts, "count": E, "hidden": size.H, **more})
    assert isinstance(spec, ExpertSpec)
    bank: ExpertBank = build(spec, dims)
    with torch.no_grad():
        for p in bank.parameters():
            p.copy_(p.to(held) if p.ndim > 2 else torch.randn_like(p).to(held))  # biases start at 0
    x_TD, gate_TK = torch.randn(T, size.D).to(held).to(F32), torch.rand(T, size.K)
    expert_TK = torch.rand(T, size.among or E).topk(size.K).indices
    valid_T = torch.rand(T) >= size.padded
    x_TD[~valid_T], gate_TK[~valid_T] = torch.nan, torch.nan
    if kind is EXACT:
        gate_TK = gate_TK.double()
    bank, x_TD, gate_TK = bank.to(device, kind.dtype), x_TD.to(device, kind.dtype), gate_TK.to(device)
    zero_TE = torch.zeros(T, E, device=device)
    routing = TokenChoice(
        logits_TE=zero_TE,
        scores_TE=zero_TE,
        valid_T=valid_T.to(device) if size.padded else None,
        expert_TK=expert_TK.to(device),
        gate_TK=gate_TK.requires_grad_(),
    )
    dispatcher = dispatcher_of(name, dims)
    with torch.autocast(device, kind.autocast, enabled=kind.autocast is not None):
        y_TO = dispatcher(x_TD.requires_grad_(), routing, bank).y_TO
    signs_TO = (torch.arange(y_TO.numel(), device=device).view_as(y_TO) % 3 - 1).to(y_TO.dtype)
    leaves = {"x": x_TD, "gate": gate_TK, **dict(bank.named_parameters())}
    grads = torch.autograd.grad(y_TO, list(leaves.values()), signs_TO, allow_unused=True, materialize_grads=True)
    found = {"output": y_TO, **dict(zip(leaves, grads, strict=True))}
    return {tensor: value.detach().double().cpu() for tensor, value in found.items()}


def dispatcher_of(name: str, dims: LayerDims) -> Dispatcher:
    """A dispatcher that drops nothing."""
    spec = component_spec("dispatcher", {"use": name, **({"factor": dims.num_experts} if name == "capacity" else {})})
    assert isinstance(spec, DispatcherSpec)
    built: Dispatcher = build(spec, dims)
    return built


# ---- memory, and single operators -----------------------------------------------------------------------------------


def poison(where: Where) -> None:
    """Fills free memory with NaN: blocks of every size that a pass may get next."""
    blocks = [torch.full((1 << power,), torch.nan, device=where.device) for power in range(4, where.size(25, 19))]
    many = [torch.full((n,), torch.nan, device=where.device) for n in (64, 1024, 16384, 1 << 18) for _ in range(32)]
    del blocks, many


def poisoned(where: Where) -> Result:
    """Whether poisoning reaches what is allocated next. A CPU's allocator may give other memory."""
    poison(where)
    found = sum(bool(torch.empty(n, device=where.device).isnan().any()) for n in (1000, 50_000, 1_000_000))
    return Result(ok=None if where.rehearsal else found == 3, figures={"of 3 sizes": found})


Views = Callable[[Tensor], Tensor]


def columns(t: Tensor) -> Tensor:
    """The same rows, stored column by column."""
    return t.t().contiguous().t()


def shifted(t: Tensor) -> Tensor:
    """The same rows at an address that is not a multiple of 16 bytes."""
    room = torch.empty(t.numel() + 4, device=t.device, dtype=t.dtype)
    return room[4:].view_as(t).copy_(t)


def products(where: Where, view: Views) -> Result:
    """Both grouped products of such views. A card that is given what its kernel does not take ends the process."""
    from moekit_dispatchers.grouped.ops import grouped_linear, grouped_outer

    torch.manual_seed(0)
    x_ND, g_NH, w_EHD = (torch.randn(*shape).to(where.device, BF16) for shape in ((16, 64), (16, 32), (3, 32, 64)))
    end_E = torch.tensor([3, 3, 13], dtype=torch.int32, device=where.device)
    same = torch.equal(grouped_linear(view(x_ND), w_EHD, end_E), grouped_linear(x_ND, w_EHD, end_E))
    outer = torch.equal(grouped_outer(view(g_NH), view(x_ND), end_E), grouped_outer(g_NH, x_ND, end_E))
    return Result(ok=same and outer, figures={"linear": same, "outer": outer})


def idle(where: Where) -> Result:
    """The second and the last expert have no rows. On sm100 torch leaves their gradients undefined (issue 172439)."""
    from moekit_dispatchers.grouped.ops import grouped_outer

    g_NH, x_ND = (torch.randn(16, width, device=where.device, dtype=BF16) for width in (32, 64))
    end_E = torch.tensor([3, 3, 16, 16], dtype=torch.int32, device=where.device)
    poison(where)
    w_EHD = grouped_outer(g_NH, x_ND, end_E)
    largest = float(w_EHD[[1, 3]].abs().max())
    return Result(ok=largest == 0, figures={"largest": largest})
