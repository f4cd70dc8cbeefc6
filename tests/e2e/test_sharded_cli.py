"""``moekit train`` in several processes, started in any manner: one run folder, one log, one process's metrics."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import free_port, run
from tiny_runs import prepare

from moekit.training.run.folder import LOCK

pytestmark = pytest.mark.slow

TWO_MODELS = """\
schema: 1
extends: tiny.yaml
model:
  moe:
    experts: {dropout: 0.0}
    balancers: {load: {use: load_balance, weight: 0.1, scope: step}}
compare: {lr: 1.0e-2}
trainer: {max_steps: 4, limit_val_batches: 3, precision: 64-true, gradient_clip_val: 0.5, deterministic: false}
"""
MOEKIT = (sys.executable, "-m", "moekit")
SCRIPT = (str(Path(sys.executable).with_name("moekit")),)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "moekit")
SHARED = "trainer.strategy={use: sharded, ep: 2}"
METRICS = (
    "train/loss", "train/balance_loss", "grad_norm", "train/max_violation", "train/dropped", "tokens", "val/loss",
    "val/max_violation",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, which accumulates two micro-batches."""
    path = prepare(tmp_path_factory.mktemp("cli"))
    (path / "two_models.yaml").write_text(TWO_MODELS)
    train(path, MOEKIT, "one", "trainer.accumulate_grad_batches=2")
    return path


def train(path: Path, start: tuple[str, ...], name: str, *options: str) -> str:
    command = [*start, "train", "two_models.yaml", "--name", name, *options]
    done = run(command, timeout=240, cwd=path)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def rows(path: Path, name: str, inside: str = "") -> list[dict[str, str]]:
    (only,) = (path / "runs" / name).iterdir()  # one run folder
    with (only / inside / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equals_one_process(path: Path, name: str) -> None:
    """The same steps and metrics as one process, for the dense baseline too."""
    for inside in ("", "dense"):
        found, expected = rows(path, name, inside), rows(path, "one", inside)
        assert [row["step"] for row in found] == [row["step"] for row in expected]
        assert inside or set(METRICS) <= set().union(*expected)
        for a, b in zip(found, expected, strict=True):
            for key in METRICS:
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
    output = train(folder, start, name, *options)
    assert output.count("training  ") == 2 and output.count("step 4/4  loss") == 2  # once for each model, by rank 0
    assert "on cpu, 64-true, 2 processes" in output
    assert_equals_one_process(folder, name)
    (only,) = (folder / "runs" / name).iterdir()
    assert {"loss.png", "load.png", "summary.json", "checkpoints"} <= {file.name for file in only.iterdir()}
    written = run([*MOEKIT, "generate", str(only), "The ", "--tokens", "3"], timeout=120, cwd=folder)
    assert written.returncode == 0, written.stderr[-4000:]


def run_by_slurm(path: Path, *argv: str) -> list[tuple[int, str, str]]:
    """Exit code and output of each of two tasks, started with the variables of ``srun``. No scheduler ends one task
    because the other ended.
    """
    job = {
        "SLURM_JOB_ID": "18243", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2", "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            [*MOEKIT, *argv], cwd=path, env={**os.environ, **job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        outputs = [task.communicate(timeout=240) for task in tasks]
        return [(task.returncode, out, err) for task, (out, err) in zip(tasks, outputs, strict=True)]
    finally:
        for task in tasks:
            task.kill()


def test_two_slurm_tasks_equal_one_process(folder: Path) -> None:
    ended = run_by_slurm(folder, "train", "two_models.yaml", "--name", "slurm", "trainer.devices=2", SHARED)
    for i, (code, out, err) in enumerate(ended):
        assert code == 0, err[-4000:]
        assert ("step 4/4" in out) == (i == 0)
    assert_equals_one_process(folder, "slurm")


def test_a_damaged_file_of_rank_1_ends_both_ranks_and_changes_nothing(folder: Path) -> None:
    """Rank 0 reads this file only to verify its checksum."""
    train(folder, TORCHRUN, "damaged", "trainer.devices=2", SHARED, "--no-compare")
    (path,) = (folder / "runs" / "damaged").iterdir()
    file = path / "checkpoints" / "step-00000004" / "tensors-00002-of-00002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    def times() -> dict[Path, int]:  # without the lock: each process that resumes names itself in it
        return {each: each.stat().st_mtime_ns for each in path.rglob("*") if each != path / LOCK}

    before = times()
    resume = ("train", "--resume", str(path), "--no-compare", "trainer.max_steps=6")
    damaged = f"{file} is damaged: its sha256 "
    (code_0, _, error_0), (code_1, _, error_1) = run_by_slurm(folder, *resume)
    assert (code_0, code_1) == (2, 2), error_0 + error_1
    assert error_0.startswith(f"error: {damaged}") and error_0.count("\n") > 1, error_0  # lists the undamaged
    assert error_1.startswith("error: ") and f": {damaged}" in error_1 and error_1.count("\n") == 1, error_1
    for start in (TORCHRUN, MOEKIT):  # Lightning starts rank 1 after rank 0 has verified the checkpoint
        done = run([*start, *resume], timeout=240, cwd=folder)
        assert done.returncode != 0 and f"error: {damaged}" in done.stderr, done.stderr
    assert times() == before
    file.write_bytes(whole)
    done = run([*MOEKIT, *resume], timeout=240, cwd=folder)
    assert done.returncode == 0 and "step 6/6" in done.stdout, done.stderr
