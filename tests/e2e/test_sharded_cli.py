"""``moekit train`` on several processes, however they are started: one run folder, one voice, one process's figures."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import run

pytestmark = pytest.mark.slow

TINY = """\
schema: 1
summary: one process or two
model:
  use: decoder
  vocab: 256
  dim: 16
  depth: 2
  attention: {use: gqa, heads: 2, kv_heads: 1, head_dim: 8}
  ffn: {use: glu, hidden: 16}
  moe:
    at: {first: 1}
    router: {use: topk, top_k: 2, score: sigmoid, renormalize: true}
    experts: {use: glu, count: 4, hidden: 8}
    dispatcher: {use: auto}
    balancers: {bias: {use: sign_bias, rate: 0.01}, load: {use: load_balance, weight: 0.1, scope: step}}
objective: {use: causal_lm}
optimizer: {use: adamw, lr: 1.0e-2}
data: {use: local_text, domains: [python], seq: 16, batch: 2}
compare: {lr: 1.0e-2}
trainer: {max_steps: 4, limit_val_batches: 3, accelerator: cpu, precision: 64-true, gradient_clip_val: 0.5}
"""
MOEKIT = (sys.executable, "-m", "moekit")
SCRIPT = (str(Path(sys.executable).with_name("moekit")),)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "moekit")
SHARED = "trainer.strategy={use: sharded, ep: 2}"
SEEN = ("train/loss", "train/grad_norm", "grad_norm", "train/max_violation", "train/dropped", "tokens", "val/loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, which accumulates two micro-batches."""
    path = tmp_path_factory.mktemp("cli")
    (path / "tiny.yaml").write_text(TINY)
    train(path, MOEKIT, "one", "trainer.accumulate_grad_batches=2")
    return path


def train(path: Path, start: tuple[str, ...], name: str, *options: str) -> str:
    command = [*start, "train", "tiny.yaml", "--name", name, *options]
    done = run(command, timeout=240, cwd=path)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def rows(path: Path, name: str, inside: str = "") -> list[dict[str, str]]:
    (only,) = (path / "runs" / name).iterdir()  # one run folder, whoever wrote it
    with (only / inside / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(path: Path, name: str) -> None:
    """The same steps and figures as one process; also of the dense model."""
    for inside in ("", "dense"):
        found, expected = rows(path, name, inside), rows(path, "one", inside)
        assert [row["step"] for row in found] == [row["step"] for row in expected]
        for a, b in zip(found, expected, strict=True):
            for key in SEEN:
                assert float(a.get(key) or 0) == pytest.approx(float(b.get(key) or 0), rel=1e-5), (name, inside, key)


@pytest.mark.parametrize(
    ("name", "start", "options"),
    [
        ("ddp", MOEKIT, ("trainer.devices=2", "trainer.strategy=ddp")),
        ("sharded", SCRIPT, ("trainer.devices=2", "trainer.strategy=sharded")),
        ("torchrun", TORCHRUN, ("trainer.devices=2", SHARED)),
    ],
)
def test_two_processes_equal_one(folder: Path, name: str, start: tuple[str, ...], options: tuple[str, ...]) -> None:
    said = train(folder, start, name, *options)
    assert said.count("training  ") == 2 and said.count("step 4/4  loss") == 2  # once of each model, by one voice
    assert "on cpu, 64-true, 2 processes" in said
    same(folder, name)
    (only,) = (folder / "runs" / name).iterdir()
    assert {"loss.png", "load.png", "summary.json", "checkpoints"} <= {file.name for file in only.iterdir()}
    written = run([*MOEKIT, "generate", str(only), "The ", "--tokens", "3"], timeout=120, cwd=folder)
    assert written.returncode == 0, written.stderr[-4000:]


def by_slurm(path: Path, *argv: str) -> list[tuple[int, str, str]]:
    """How each of two tasks ended: its code, what it said. The variables are those of ``srun``; no scheduler ends one
    because of the other."""
    job = {
        "SLURM_JOB_ID": "18243", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            [*MOEKIT, *argv], cwd=path, env={**os.environ, **job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        said = [task.communicate(timeout=240) for task in tasks]
        return [(task.returncode, out, err) for task, (out, err) in zip(tasks, said, strict=True)]
    finally:
        for task in tasks:
            task.kill()


def test_slurm_starts_both(folder: Path) -> None:
    ended = by_slurm(folder, "train", "tiny.yaml", "--name", "slurm", "trainer.devices=2", SHARED)
    for i, (code, out, err) in enumerate(ended):
        assert code == 0, err[-4000:]
        assert ("step 4/4" in out) == (i == 0)
    same(folder, "slurm")


def test_a_damaged_file_ends_both_and_changes_nothing(folder: Path) -> None:
    """It is the second one's own file, which the first would never read but to compare it."""
    train(folder, TORCHRUN, "damaged", "trainer.devices=2", SHARED, "--no-compare")
    (path,) = (folder / "runs" / "damaged").iterdir()
    file = path / "checkpoints" / "step-00000004" / "tensors-00002-of-00002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*")}
    resume = ("train", "--resume", str(path), "--no-compare", "trainer.max_steps=6")
    damaged = f"{file} is damaged: its sha256 does not match the manifest\n"
    (first, _, said), (other, _, heard) = by_slurm(folder, *resume)
    assert (first, other) == (2, 2), said + heard
    assert said.startswith(f"error: {damaged}  intact checkpoints in this folder (pass one instead of the run):\n"), (
        said
    )
    assert heard == f"error: rank 0 of this run has ended: {damaged}"
    for start in (TORCHRUN, MOEKIT):  # Lightning starts the second when the first has compared it
        done = run([*start, *resume], timeout=240, cwd=folder)
        assert done.returncode != 0 and f"error: {damaged}" in done.stderr, done.stderr
    assert {each: each.stat().st_mtime_ns for each in path.rglob("*")} == before
    file.write_bytes(whole)
    done = run([*MOEKIT, *resume], timeout=240, cwd=folder)
    assert done.returncode == 0 and "step 6/6" in done.stdout, done.stderr
