"""Deterministic training: two runs are equal to the last bit, and so is one that is killed and resumed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

import moekit
from gpu.case import Case, Result, Where
from gpu.training import small
from moekit.checkpoints.reading import open_checkpoint
from moekit.run import Run
from moekit.training.run.folder import RunFolder

STEPS, EVERY, KILLED = 12, 4, 6


def cases(where: Where) -> Iterator[Case]:
    """The first case keeps the digest that the second is compared with."""
    known: list[str] = []
    yield Case(name="two deterministic runs are equal to the last bit", run=lambda: twice(where, known))
    yield Case(name="so is one that is killed and resumed", run=lambda: killed(where, known))


def options(where: Where) -> list[str]:
    """Of a run that saves every ``EVERY`` steps."""
    return [
        *small(where), f"trainer.max_steps={STEPS}", "trainer.deterministic=true",
        f"trainer.val_check_interval={EVERY}", "trainer.limit_val_batches=1",
        f"trainer.precision={where.size('bf16-mixed', '32-true')}",
    ]  # fmt: skip


def twice(where: Where, known: list[str]) -> Result:
    """Trains twice in this process."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            known.append(digest(train(where, folder)))
    return Result(ok=known[0] == known[1], figures={"sha256": known[0], "of the second": known[1]})


def killed(where: Where, known: list[str]) -> Result:
    """SIGKILL in the step after a save; this process resumes."""
    if not known:  # the first case was another process's
        twice(where, known)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from gpu.resuming import die; die(*sys.argv[1:])"]
        done = subprocess.run([*command, where.device, folder], capture_output=True, text=True, check=False)
        if done.returncode != -signal.SIGKILL:
            return Result(ok=False, note=f"the run to kill ended with {done.returncode}: {done.stderr[-300:]}")
        (path,) = (spec.parent for spec in Path(folder).glob("*/*/spec.yaml"))
        before = RunFolder(path).checkpoint().name
        found = digest(moekit.train(resume=path, compare=False, quiet=True))
    return Result(ok=found == known[0], figures={"sha256": found, "resumed from": before})


def train(where: Where, folder: str, *callbacks: L.Callback) -> Run:
    """One run below a folder."""
    return moekit.train("deepseek_v3", options(where), out=folder, compare=False, quiet=True, callbacks=list(callbacks))


def die(device: str, folder: str) -> None:
    """A run that kills its process after ``KILLED`` steps."""

    class Die(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)

    train(Where(device=device), folder, Die())


def digest(run: Run) -> str:
    """Of every tensor of the last checkpoint: weights, biases, the optimizer's state."""
    total = hashlib.sha256()
    contents = open_checkpoint(RunFolder(run.path).checkpoint()).whole()
    for path, tensor in sorted(tensors({part: contents[part] for part in ("state_dict", "optimizer_states")})):
        total.update(path.encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def tensors(tree: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree, each with its path."""
    if isinstance(tree, Tensor):
        yield at, tree
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in pairs:
        yield from tensors(value, f"{at}.{key}")
