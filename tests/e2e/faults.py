"""What the tests of faults share: a recipe that trains in milliseconds a step, and processes to do things to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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


def prepare(folder: Path) -> Path:
    """A folder with text and ``tiny.yaml``, where commands are to run."""
    generator = torch.Generator().manual_seed(1)
    (folder / "text").mkdir(parents=True)
    for i in range(6):
        letters = torch.randint(97, 123, (600,), generator=generator).tolist()
        (folder / "text" / f"{i}.txt").write_text("".join(map(chr, letters)))
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus a signal; what it said; s since the last signal; files touched."""

    code: int
    said: str
    seconds: float
    touched: int


class Zygote:
    """Runs ``moekit`` commands in processes of their own that need no imports: see ``zygote.py``."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        tests = str(Path(__file__).parents[1])  # where forked.py lies
        path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, *argv: str | Path, cwd: Path | None = None, **what: Any) -> Ended:
        assert self.process.stdin is not None and self.process.stdout is not None
        where = cwd or self.cwd
        log = self.cwd / "said.log"
        order = {"argv": [str(arg) for arg in argv], "log": str(log), "cwd": str(where), **what}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Ended(answer["code"], log.read_text(), answer["seconds"], answer["touched"])

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)


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
    for part in ("state_dict", "optimizer_states"):
        found, expected = tensors(one[part]), tensors(two[part])
        assert found.keys() == expected.keys() and len(found) > 8
        assert all(torch.equal(found[name], expected[name]) for name in found), part


def tensors(tree: Any, at: str = "") -> dict[str, Tensor]:
    """The tensors of a tree by their paths."""
    if isinstance(tree, Tensor):
        return {at: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, Sequence) else ()
    if isinstance(tree, str):
        return {}
    return {path: t for key, value in items for path, t in tensors(value, f"{at}.{key}").items()}
