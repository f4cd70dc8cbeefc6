"""Where the time of one MoE layer of OLMoE goes, in bf16 under autocast: products, and all else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import moekit
from gpu.case import Case, Result, Where

PRODUCTS = ("gemm", "grouped_mm", "_mm", "cutlass", "linear", "outer", "nvjet", "sm90_xmma", "addmm", "bmm")
TOP = 12
PASSES = 10


def cases(where: Where) -> Iterator[Case]:
    """Each dispatcher, and ``grouped`` with biases."""
    for name, options in {
        "grouped": {"use": "grouped"}, "triton": {"use": "triton"}, "capacity": {"use": "capacity", "factor": 1.25}
    }.items():  # fmt: skip
        yield Case(name=name, run=lambda o=options: profiled(where, o, "glu"))  # type: ignore[misc]
    yield Case(name="grouped, with biases", run=lambda: profiled(where, {"use": "grouped"}, "ffn"))


def profiled(where: Where, dispatcher: dict[str, Any], experts: str) -> Result:
    """Milliseconds of forward and backward, peak of memory, and the longest kernels of one pass."""
    D, H, E, K, T = where.size((2048, 1024, 64, 8, 8192), (64, 32, 4, 2, 32))
    more = {"bias": True, "activation": "silu"} if experts == "ffn" else {}
    torch.manual_seed(0)
    layer = moekit.layer(
        dim=D,
        router={"use": "topk", "top_k": K},
        experts={"use": experts, "count": E, "hidden": H, **more},
        dispatcher=dispatcher,
    ).to(where.device)
    x = torch.randn(2, T // 2, D, device=where.device, requires_grad=True)

    def step() -> None:
        with torch.autocast(where.device, torch.bfloat16):
            y, _ = layer(x)
        y.float().mean().backward()

    def wait() -> None:
        if not where.rehearsal:
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    before = 0
    if not where.rehearsal:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    for _ in range(PASSES):
        step()
    launched = time.perf_counter() - start
    wait()
    figures: dict[str, Any] = {
        "ms": round(1000 * (time.perf_counter() - start) / PASSES, 3),
        "ms to launch": round(1000 * launched / PASSES, 3),
    }
    if not where.rehearsal:
        figures["peak GiB"] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)
    activities = [ProfilerActivity.CPU, *where.size([ProfilerActivity.CUDA], [])]
    with profile(activities=activities) as found:
        step()
        wait()
    kernels = _kernels(found, where)
    total = sum(ms for _, ms in kernels)
    products = sum(ms for name, ms in kernels if any(word in name.lower() for word in PRODUCTS))
    figures |= {
        "ms of kernels": round(total, 3),
        "share of products": round(products / total, 3) if total else None,
        "kernels": [{"name": name[:90], "ms": round(ms, 4)} for name, ms in kernels[:TOP]],
    }
    return Result(ok=bool(kernels), figures=figures)


def _kernels(found: Any, where: Where) -> list[tuple[str, float]]:
    """Kernels (on a CPU: operators) with their own milliseconds, the longest first."""
    key = "self_cpu_time_total" if where.rehearsal else "self_device_time_total"
    rows = [
        (event.key, getattr(event, key) / 1000)
        for event in found.key_averages()
        if where.rehearsal or "CUDA" in str(event.device_type)  # an operator's own row repeats that of its kernels
    ]
    return sorted(((name, ms) for name, ms in rows if ms > 0), key=lambda row: -row[1])
