"""A run that is killed by SIGKILL at random moments, and resumed, again and again ends as if nothing had happened.

Moments: up to 50 ms after a random step began, up to 2 ms after a random touch of a checkpoint's file, and any time
from its start on. Equal are the weights and optimizer states of all checkpoints kept, the pointers to them, every row
of ``metrics.csv`` and ``routing/`` (but for times), and the results in ``summary.json``.

    pytest -m slow tests/attack/test_kill_chains.py        # 50 chains, about five minutes
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from states import assert_same_tensors
from tiny_runs import Ended, Moekit, only_run, prepare, state_of, succeeded

from moekit.checkpoints.files import steps_in, target_of
from moekit.checkpoints.reading import open_checkpoint
from moekit.tables import read_tables
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import read_metrics

STEPS = 16
CHAINS, AT_ONCE = 50, 10
OPTIONS = ("trainer.val_check_interval=4", "trainer.limit_val_batches=1", f"trainer.max_steps={STEPS}")
VARIANTS = (
    ("--no-compare", "checkpoints.keep=2"),
    ("--no-compare", "checkpoints.keep=1", "checkpoints.asynchronous=true"),
    ("compare={lr: 0.01}", "checkpoints.keep=1"),  # then a dense model, with checkpoints of its own
)
TIMES = {"seconds", "tokens_per_second"}


class Chains:
    """The runs of one folder: undisturbed ones, trained when they are first needed, and chains."""

    def __init__(self, moekit: Moekit) -> None:
        self.moekit = moekit
        self.killed = 0
        self._whole: dict[tuple[str, ...], Path] = {}

    def train(self, out: str, variant: tuple[str, ...], **what: Any) -> Ended:
        return self.moekit("train", "tiny.yaml", "--out", out, *OPTIONS, *variant, **what)

    def whole(self, variant: tuple[str, ...]) -> Path:
        if variant not in self._whole:
            out = f"whole-{len(self._whole)}"
            succeeded(self.train(out, variant))
            self._whole[variant] = only_run(self.moekit.cwd / out)
        return self._whole[variant]

    def proceed(self, out: str, variant: tuple[str, ...], **what: Any) -> Ended:
        """What a user does: resumes the run; starts another one if it has no checkpoint yet."""
        runs = [spec.parent for spec in (self.moekit.cwd / out).glob("*/*/spec.yaml")]
        if not runs or RunFolder(runs[0]).last is None:
            shutil.rmtree(self.moekit.cwd / out, ignore_errors=True)
            return self.train(out, variant, **what)
        return self.moekit("train", "--resume", runs[0], **what)

    def chain(self, seed: int) -> None:
        """Kills, resumes and compares one run, a function of the seed but for the machine's speed."""
        rng, out, variant = random.Random(seed), f"chain-{seed}", VARIANTS[seed % len(VARIANTS)]
        moments: list[dict[str, Any]] = []
        for _ in range(rng.randint(2, 4)):
            moments.append(
                rng.choice(
                    (
                        {"kill_step": [rng.randint(1, STEPS - 2), rng.uniform(0, 0.05)]},
                        {"kill_at": [rng.randint(1, 50), rng.choice([0.0, rng.uniform(0, 0.002)])]},
                        {"send": [["", rng.uniform(0, 1.5), signal.SIGKILL]]},
                    )
                )
            )
            done = self.proceed(out, variant, **moments[-1])
            assert done.code in (0, -signal.SIGKILL), (seed, moments, done.output)  # 0: it ended before that moment
            self.killed += done.code != 0
        done = self.proceed(out, variant)
        assert done.code == 0 and "Traceback" not in done.output, (seed, moments, done.output)
        run, whole = only_run(self.moekit.cwd / out), self.whole(variant)
        try:
            assert_same_run(run, whole)
            if (whole / "dense").is_dir():
                assert_same_run(run / "dense", whole / "dense")
            assert results(run) == results(whole)
        except AssertionError as error:
            raise AssertionError(f"chain {seed}, {variant}, killed at {moments}: {run} differs from {whole}") from error
        shutil.rmtree(self.moekit.cwd / out)


def assert_same_run(run: Path, whole: Path) -> None:
    kept, expected = (steps_in(path / "checkpoints") for path in (run, whole))
    assert [*kept] == [*expected]
    for step in kept:
        one, two = (open_checkpoint(path).whole() for path in (kept[step], expected[step]))
        assert one["global_step"] == two["global_step"] == step
        assert_same_tensors(state_of(one), state_of(two), more_than=16)
    hidden = [p.name for p in (*run.iterdir(), *(run / "checkpoints").iterdir()) if p.name.startswith(".")]
    assert set(hidden) <= {".lock"}
    for pointer in ("last", "best"):
        targets = [target_of(path / "checkpoints", pointer) for path in (run, whole)]
        assert targets[0] is not None and targets[1] is not None and targets[0].name == targets[1].name
    rows, others = (
        {
            step: {name: value for name, value in row.items() if name not in TIMES}
            for step, row in read_metrics(path / "metrics.csv").items()
        }
        for path in (run, whole)
    )
    assert rows == others and [*rows] == list(range(1, STEPS + 1))
    recorded, others = (read_tables(path / "routing") for path in (run, whole))
    assert set(recorded) == set(others)
    for table, columns in recorded.items():
        for name in set(columns) - {"changed"}:  # the first validation after a start has none before it
            np.testing.assert_array_equal(columns[name], others[table][name])


def results(run: Path) -> dict[str, Any]:
    """The numbers in ``summary.json`` that do not depend on time, and the names of its pictures."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    comparison = summary.pop("comparison") or {}
    files = [Path(file).name for file in summary.pop("files")]
    timed = {"folder", "seconds", "moe_seconds", "dense_seconds", "as_long_seconds", "train"}
    timed |= {"dense_as_long", "as_long_steps"}  # as many as the machine is fast
    return {name: value for name, value in {**summary, **comparison}.items() if name not in timed} | {
        "files": files,
        "train": {name: value for name, value in summary["train"].items() if name not in TIMES},
    }


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Chains:
    return Chains(Moekit(prepare(tmp_path_factory.mktemp("chains"))))


def test_a_chain_of_kills_changes_nothing(chains: Chains) -> None:
    chains.chain(1000)
    assert chains.killed


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, CHAINS, AT_ONCE))
def test_50_chains_of_kills_change_nothing(chains: Chains, first: int) -> None:
    before = chains.killed
    for seed in range(first, first + AT_ONCE):
        chains.chain(seed)
    assert chains.killed - before >= AT_ONCE
