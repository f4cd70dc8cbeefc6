"""Shared by end-to-end tests: recipes that train in milliseconds a step, commands in forked processes, and the tensors
of checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ranks import fork
from states import assert_same_tensors, tensors
from torch import Tensor

from moekit.checkpoints.reading import open_checkpoint
from moekit.training.run.folder import RunFolder

RECIPE = """\
schema: 1
name: tiny
model:
  use: decoder
  vocab: 256
  dim: 16
  depth: 2
  attention: {use: gqa, heads: 2, kv_heads: 1, head_dim: 8}
  ffn: {use: glu, hidden: 16}
  moe:
    at: {first: 1}
    router: {use: topk, top_k: 2, score: sigmoid, renormalize: true, input_jitter: 0.1}
    experts: {use: glu, count: 8, hidden: 8, dropout: 0.1}
    dispatcher: {use: grouped}
    balancers: {bias: {use: sign_bias, rate: 0.01}}
objective: {use: causal_lm}
data: {use: text_files, path: text, seq: 8, batch: 4, validation: 0.34, validation_windows: 4}
optimizer: {use: adamw, lr: 1.0e-2}
trainer: {accelerator: cpu, deterministic: true, log_every_n_steps: 1}
"""
TINY_V3 = [
    "model.dim=16", "model.depth=2", "model.ffn.hidden=16", "model.mtp=null", "model.moe.experts.count=8",
    "model.moe.experts.hidden=8", "model.moe.shared.hidden=8", "model.moe.router.top_k=2", "model.moe.router.groups=2",
    "model.moe.router.top_groups=1", "model.attention={use: gqa, heads: 2, kv_heads: 1, head_dim: 8}",
    "data.seq=16", "data.batch=2", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
]  # fmt: skip
"""Overrides that make ``deepseek_v3`` tiny."""
OFTEN = ("trainer.val_check_interval=4", "trainer.limit_val_batches=1", "--no-compare")


def prepare(folder: Path) -> Path:
    """Writes text and ``tiny.yaml`` to the folder where commands run."""
    generator = torch.Generator().manual_seed(1)
    (folder / "text").mkdir(parents=True)
    for i in range(6):
        letters = torch.randint(97, 123, (600,), generator=generator).tolist()
        (folder / "text" / f"{i}.txt").write_text("".join(map(chr, letters)))
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, or minus the signal that ended it.
        output: what it printed, to both streams.
        seconds: from the last signal sent to its end, or from its start.
        touched: how often it touched checkpoint files, if ``kill_at`` is given.
    """

    code: int
    output: str
    seconds: float
    touched: int


@dataclass(frozen=True)
class Moekit:
    """Runs ``moekit`` commands in a folder, each in a forked process; ``fork_server.py`` lists the keywords."""

    cwd: Path

    def __call__(self, *argv: str | Path, **what: Any) -> Ended:
        log = self.cwd / "output.log"
        answer = fork(600, argv=[str(arg) for arg in argv], log=str(log), cwd=str(self.cwd), **what)
        return Ended(output=log.read_text(), **answer)

    def train(self, out: str | Path, steps: int, *options: str | Path, **what: Any) -> Ended:
        """Trains ``tiny.yaml`` from the start; saves after every fourth step, unless options say otherwise."""
        return self("train", "tiny.yaml", f"trainer.max_steps={steps}", *OFTEN, "--out", out, *options, **what)

    def resume(self, run: Path, steps: int, *options: str, **what: Any) -> Ended:
        """Resumes a run."""
        return self("train", "--resume", run, f"trainer.max_steps={steps}", *OFTEN, *options, **what)


def succeeded(ended: Ended) -> None:
    assert ended.code == 0, ended.output


def only_run(root: Path) -> Path:
    """The one run folder below ``root``."""
    (run,) = (spec.parent for spec in root.glob("*/*/spec.yaml"))
    return run


def saved(run: Path) -> dict[str, Any]:
    """The contents of a run's newest checkpoint."""
    contents: dict[str, Any] = open_checkpoint(RunFolder(run).checkpoint()).whole()
    return contents


def assert_same(a: Path, b: Path) -> None:
    """Two runs end with the same step, weights, biases and optimizer state, bit for bit."""
    one, two = saved(a), saved(b)
    assert one["global_step"] == two["global_step"]
    assert_same_tensors(state_of(one), state_of(two), more_than=16)


def state_of(contents: dict[str, Any]) -> dict[str, Tensor]:
    """The model's and the optimizer's tensors of a checkpoint's contents, by their paths."""
    return tensors({key: contents[key] for key in ("state_dict", "optimizer_states")})
