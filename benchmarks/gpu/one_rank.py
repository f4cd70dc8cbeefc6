"""One rank in a process group of its own (NCCL on a card), sharded by FSDP2, saving while it trains."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import moekit
from gpu.case import Case, Result, Where
from gpu.resuming import tensors
from gpu.training import small
from moekit.checkpoints.reading import open_checkpoint
from moekit.checkpoints.writing import STAGING
from moekit.training.run.folder import RunFolder

STEPS, EVERY = 8, 2
NEAR = 1e-3  # of a tensor's norm, after STEPS steps in another order of sums


def cases(where: Where) -> Iterator[Case]:
    """First without a process group: once there is one, it stays."""
    plain: dict[str, dict[str, Tensor]] = {}
    for precision in where.size(("bf16-mixed", "16-mixed"), ("32-true",)):
        yield Case(name=f"{precision}, not sharded", run=lambda p=precision: alone(where, p, plain))  # type: ignore[misc]
    for precision in where.size(("bf16-mixed", "16-mixed"), ("32-true",)):
        yield Case(name=f"{precision}, sharded", run=lambda p=precision: sharded(where, p, plain))  # type: ignore[misc]
    yield Case(name="saves pin no more than one buffer", run=lambda: pinned(where))


def alone(where: Where, precision: str, plain: dict[str, dict[str, Tensor]]) -> Result:
    """The run that the sharded one is compared with."""
    with tempfile.TemporaryDirectory() as folder:
        plain[precision] = weights(where, precision, folder)
    return Result(figures={"tensors": len(plain[precision])})


def sharded(where: Where, precision: str, plain: dict[str, dict[str, Tensor]]) -> Result:
    """Trains with asynchronous saves, then resumes for two steps."""
    options = ["trainer.strategy={use: sharded, ep: 1}", "checkpoints.asynchronous=true"]
    with tempfile.TemporaryDirectory() as folder:
        ours = weights(where, precision, folder, *options)
        (path,) = (spec.parent for spec in Path(folder).glob("*/*/spec.yaml"))
        again = moekit.train(resume=path, overrides=[f"trainer.max_steps={STEPS + 2}"], compare=False, quiet=True)
        resumed = RunFolder(again.path).checkpoint().name
    figures = {"backend": dist.get_backend(), "resumed to": resumed}
    if precision not in plain:
        return Result(ok=False, note="there is no run to compare with", figures=figures)
    theirs = plain[precision]
    far = {
        n: float((ours[n] - t).norm() / t.norm().clamp(min=1e-12)) for n, t in theirs.items() if t.is_floating_point()
    }
    worst = max(far, key=far.__getitem__)
    ok = ours.keys() == theirs.keys() and far[worst] <= NEAR and resumed.endswith(str(STEPS + 2))
    return Result(ok=ok, note="" if ok else f"{worst} differs", figures={**figures, "largest difference": far[worst]})


def weights(where: Where, precision: str, folder: str, *options: str) -> dict[str, Tensor]:
    """The weights of a run's last checkpoint, in fp64."""
    arguments = [
        *small(where), f"trainer.max_steps={STEPS}", f"trainer.precision={precision}", "trainer.deterministic=true",
        f"trainer.val_check_interval={EVERY}", "trainer.limit_val_batches=1", *options,
    ]  # fmt: skip
    run = moekit.train("deepseek_v3", arguments, out=folder, compare=False, quiet=True)
    saved = open_checkpoint(RunFolder(run.path).checkpoint()).whole()["state_dict"]
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors(saved)}


def pinned(where: Where) -> Result:
    """Page-locked memory after all these saves, as torch's allocator counts it."""
    if where.rehearsal:
        return Result(note="skipped: a CPU pins nothing")
    peak = int(torch.cuda.host_memory_stats()["allocated_bytes.peak"])
    return Result(ok=peak <= 2 * STAGING, figures={"peak MiB": peak >> 20, "one buffer, MiB": STAGING >> 20})
