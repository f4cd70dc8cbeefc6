"""What a sparse layer costs above the dense layer of the same multiply-adds.

Times forward and backward of E GLU experts, K per token, under each dispatcher, against a dense GLU of hidden K·H:
equal work, so everything above 1.0 is the cost of being sparse. ``plain`` is what anyone would write first: sort,
index, ``F.grouped_mm``, un-sort, weighted sum. The variants take turns within each round, in one process, so a
noisy machine troubles all alike. The routing is uniform and given: a router's own time is no part of this.

    python benchmarks/layer.py                                     # all shapes, 2 threads
    python benchmarks/layer.py fine --rounds 15 --json fine.json
    python benchmarks/layer.py --shape 4096,512,256,64,8 --only dense,grouped
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from moekit.contracts import Dispatcher, LayerDims
from moekit.groups import UniformGroups
from moekit.routing import TokenChoice
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts


class Shape(NamedTuple):
    T: int
    D: int
    H: int
    E: int
    K: int


SHAPES = {
    "small": Shape(512, 128, 256, 8, 2),
    "base": Shape(4096, 512, 1024, 16, 2),
    "fine": Shape(4096, 512, 256, 64, 8),
    "many": Shape(4096, 512, 256, 256, 8),
    "tiny": Shape(4096, 128, 64, 64, 8),  # one layer of the recipe deepseek_v3
}
VARIANTS = ("dense", "plain", "loop", "grouped")

Step = Callable[[], tuple[Tensor, list[Tensor]]]
"""One forward pass: the output, and what gradients are taken of."""


def plain(x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, w_gate_up_EHD: Tensor, w_down_EOH: Tensor) -> Tensor:
    T, K = expert_TK.shape
    expert_N = expert_TK.flatten()
    order_N = expert_N.argsort(stable=True)
    end_E = torch.bincount(expert_N, minlength=w_down_EOH.shape[0]).cumsum(0).int()
    gate_NH, up_NH = F.grouped_mm(x_TD[order_N // K], w_gate_up_EHD.mT, offs=end_E).chunk(2, -1)
    y_NO = F.grouped_mm(F.silu(gate_NH) * up_NH, w_down_EOH.mT, offs=end_E)
    back_N = torch.empty_like(order_N)
    back_N[order_N] = torch.arange(T * K, device=order_N.device)
    return (y_NO[back_N].view(T, K, -1) * gate_TK.unsqueeze(-1)).sum(1)


def variants(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, Step]:
    T, D, H, E, K = shape
    torch.manual_seed(0)
    dims = LayerDims(dim=D, num_experts=E)
    x_TD = torch.randn(T, D, device=device, dtype=dtype, requires_grad=True)
    logits_TE = torch.randn(T, E, device=device)
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(K)
    gate_TK = gate_TK.requires_grad_()
    routing = TokenChoice(logits_TE=logits_TE, scores_TE=logits_TE, expert_TK=expert_TK, gate_TK=gate_TK)
    experts = GluExperts(Glu(count=E, hidden=H), dims).to(device, dtype)
    dense = GluExperts(Glu(hidden=K * H), dims).to(device, dtype)
    weights = [experts.w_gate_up_EHD, experts.w_down_EOH]

    def dispatched(dispatcher: Dispatcher) -> Step:
        return lambda: (dispatcher(x_TD, routing, experts).y_TO, [x_TD, gate_TK, *weights])

    return {
        "dense": lambda: (dense(x_TD, UniformGroups(1, T)), [x_TD, *dense.parameters()]),
        "plain": lambda: (plain(x_TD, expert_TK, gate_TK.to(dtype), *weights), [x_TD, gate_TK, *weights]),
        "loop": dispatched(LoopDispatcher(Loop(), dims)),
        "grouped": dispatched(GroupedDispatcher(Grouped(), dims)),
    }


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(steps: dict[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of forward and backward, for each variant one figure a round; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = clock(device)
            y, leaves = step()
            torch.autograd.grad(y, leaves, torch.ones_like(y))
            if turn:
                seconds[name].append(clock(device) - start)
    return seconds


def compare(shape: Shape, only: list[str], rounds: int, device: str, dtype: torch.dtype) -> dict[str, object]:
    steps = {name: step for name, step in variants(shape, device, dtype).items() if name in only}
    seconds = measure(steps, rounds, device)
    floor = seconds["dense"]
    return {
        "shape": shape._asdict(),
        "ms": {name: 1e3 * min(s) for name, s in seconds.items()},
        "ratio": {name: min(s) / min(floor) for name, s in seconds.items()},  # least disturbed round of each
        "ratio_median": {
            name: statistics.median(a / b for a, b in zip(s, floor, strict=True)) for name, s in seconds.items()
        },
    }


def table(results: dict[str, dict[str, object]], only: list[str]) -> Table:
    out = Table(title="forward + backward: ms (best round), ÷ dense by best rounds, ÷ dense by the median round")
    out.add_column("shape: T, D, H, E, K")
    for name in only:
        out.add_column(name, justify="right")
    for name, result in results.items():
        cells = [f"{result['ms'][v]:.1f}  {result['ratio'][v]:.2f}  {result['ratio_median'][v]:.2f}" for v in only]  # type: ignore[index]
        out.add_row(f"{name}: {' '.join(str(n) for n in result['shape'].values())}", *cells)  # type: ignore[attr-defined]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help=f"names of shapes: {', '.join(SHAPES)}; all when none is given")
    parser.add_argument("--shape", action="append", default=[], metavar="T,D,H,E,K", help="another shape; repeatable")
    parser.add_argument("--only", default=",".join(VARIANTS), help=f"which of {', '.join(VARIANTS)}; default all")
    parser.add_argument("--rounds", type=int, default=9, help="rounds counted, after one that is not")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    unknown = [name for name in args.shapes if name not in SHAPES]
    only = [name for name in VARIANTS if name in {"dense", *args.only.split(",")}]
    if unknown or not set(args.only.split(",")) <= set(VARIANTS):
        parser.error(f"unknown shape or variant; shapes: {', '.join(SHAPES)}; variants: {', '.join(VARIANTS)}")
    chosen = {name: SHAPES[name] for name in args.shapes or ([] if args.shape else SHAPES)}
    chosen |= {text: Shape(*map(int, text.split(","))) for text in args.shape}

    torch.set_num_threads(args.threads)
    dtype: torch.dtype = getattr(torch, args.dtype)
    results = {name: compare(shape, only, args.rounds, args.device, dtype) for name, shape in chosen.items()}
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()}, {args.threads} threads"
    Console().print(table(results, only), f"{where}; torch {torch.__version__}; {args.dtype}; {args.rounds} rounds")
    if args.json:
        about = {"device": where, "torch": torch.__version__, "dtype": args.dtype, "rounds": args.rounds}
        args.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
