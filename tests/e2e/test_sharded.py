"""Ranks equal one process that accumulates the same micro-batches: gradients, loads, biases, weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sharded_run
import torch
from ranks import run_forked, run_ranks

from moekit.training.run.prepare import quiet

SCRIPT = Path(sharded_run.__file__)
WITHIN = {"64-true": 1e-10, "32-true": 4e-5}  # of the largest; measured: 4e-14 and 1.8e-5
Run = dict[str, Any]


def runs_in(
    tmp_path: Path, world: int, runs: list[Run], timeout: float = 240, start: Callable[..., str] = run_ranks
) -> list[Run]:
    """Each run on ``world`` ranks, one after another in one launch, with its distance from one process (``apart``)."""
    expected: dict[str, Path] = {}
    with quiet():
        for run in runs:
            # Neither recomputation nor the layout changes the result: one process stands for all of them.
            micros = 1 if "together" in run else run["accumulate"] * world
            alone = {**run, "accumulate": micros, "recompute": "none", "ep": 1}
            alone |= {"dense": "shard", "reduce": "micro_batch"}
            key = json.dumps(alone)
            if key not in expected:
                expected[key] = tmp_path / f"expected-{len(expected)}.pt"
                torch.save(sharded_run.train(alone), expected[key])
            run["expected"] = str(expected[key])
    plan, rows = tmp_path / "plan.json", tmp_path / "rows.json"
    plan.write_text(json.dumps(runs))
    start(SCRIPT, world, str(plan), str(rows), timeout=timeout)
    found: list[Run] = json.loads(rows.read_text())
    return found


def print_worst(found: list[Run]) -> None:
    """The worst figures by recipe and precision, for ``pytest -s``."""
    for recipe, precision in dict.fromkeys((run["recipe"], run["precision"]) for run in found):
        some = [run["apart"] for run in found if (run["recipe"], run["precision"]) == (recipe, precision)]
        worst = {key: max(apart[key] for apart in some) for key in some[0]}
        print(f"{recipe} {precision}, {len(some)} layouts: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))


def check(found: list[Run]) -> None:
    for run in found:
        layout = {key: value for key, value in run.items() if key not in ("apart", "expected")}
        for what, apart in run["apart"].items():
            assert apart <= (0 if what in ("load", "dropped") else WITHIN[run["precision"]]), (layout, what, apart)


def test_two_ranks_that_share_experts_replicate_the_rest_or_run_ddp_equal_one_process(tmp_path: Path) -> None:
    run = {"recipe": "deepseek_v3", "precision": "64-true", "steps": 3, "accumulate": 2, "ep": 2}
    packed = {**run, "documents": True, "reduce": "step"}
    replicated = [{**run, "ep": 1, "dense": "replicate", "reduce": "step"}, {**run, "dense": "replicate"}]
    check(runs_in(tmp_path, 2, [run, packed, *replicated, {**run, "ep": 1, "strategy": "ddp"}], start=run_forked))


@pytest.mark.slow
def test_four_ranks_in_every_layout_equal_one_process(tmp_path: Path) -> None:
    """Every expert layout by accumulation by recomputation, in fp64; in fp32 without the last."""
    runs = [
        {"recipe": recipe, "precision": precision, "steps": 5, "accumulate": accumulate, "ep": ep, "recompute": again}
        for recipe, ep, accumulate, (precision, again) in product(
            ("deepseek_v3", "switch", "gshard"),
            (1, 2, 4),
            (1, 4),
            (("64-true", "none"), ("64-true", "experts"), ("64-true", "blocks"), ("32-true", "none")),
        )
    ]
    found = runs_in(tmp_path, 4, runs, timeout=3600)
    print_worst(found)
    check(found)
    switch = next(run["expected"] for run in found if run["recipe"] == "switch")
    dropped = torch.load(switch, weights_only=True)["dropped"]
    assert sum(int(layer) for step in dropped for layer in step.values()) > 0


@pytest.mark.slow
def test_four_ranks_that_replicate_the_dense_part_equal_one_process(tmp_path: Path) -> None:
    """Every expert layout by accumulation, in fp64 with and without recomputation, and in fp32."""
    runs = [
        {"recipe": recipe, "precision": precision, "steps": 5, "accumulate": accumulate, "ep": ep, "recompute": again,
         "dense": "replicate", "reduce": reduce}
        for recipe, ep, (accumulate, reduce), (precision, again) in product(
            ("deepseek_v3", "gshard"),
            (1, 2, 4),
            ((1, "micro_batch"), (4, "micro_batch"), (4, "step")),
            (("64-true", "none"), ("64-true", "blocks"), ("32-true", "none")),
        )
    ]  # fmt: skip
    found = runs_in(tmp_path, 4, runs, timeout=1800)
    print_worst(found)
    check(found)


@pytest.mark.slow
def test_adafactor_in_every_layout_equals_one_process(tmp_path: Path) -> None:
    """It needs statistics of whole tensors; ST-MoE has a scale for each hidden unit of an expert."""
    adafactor = ["optimizer=null", "optimizer={use: adafactor, weight_decay: 0.1}"]
    runs = [
        {"recipe": recipe, "precision": precision, "steps": 5, "accumulate": 1, "ep": ep, "options": adafactor,
         "dense": dense}
        for recipe, ep, precision, dense in product(
            ("st_moe", "switch", "deepseek_v3"), (1, 2, 4), ("64-true", "32-true"), ("shard", "replicate")
        )
    ]  # fmt: skip
    found = runs_in(tmp_path, 4, runs, timeout=900)
    print_worst(found)
    check(found)


SET = "model.moe.balancers."
BALANCERS = (
    "load={use: load_balance, weight: 0.5, scope: step}",
    "load={use: load_balance, weight: 0.5, scope: sequence}",
    "load={use: load_balance, weight: 0.5}",
    "cv={use: cv_squared, weight: 0.5}",
    "device={use: device_balance, groups: 4, weight: 0.5}",
    "talk={use: communication_balance, groups: 4, top_groups: 2, weight: 0.5}",
    "z={use: z_loss, weight: 0.5}",
    "bias={use: sign_bias, rate: 0.1, rule: proportional}",
)


@pytest.mark.slow
def test_every_balancer_on_two_ranks_equals_one_process(tmp_path: Path) -> None:
    """A balancer sees a micro-batch or a whole step, and neither depends on the layout."""
    runs = [
        {"recipe": "deepseek_v3", "precision": "64-true", "steps": 3, "accumulate": 2, "ep": ep,
         "options": ["model.moe.balancers.bias=null", "model.moe.balancers.sequence=null", SET + balancer]}
        for balancer, ep in product(BALANCERS, (1, 2))
    ]  # fmt: skip
    check(runs_in(tmp_path, 2, runs, timeout=600))


@pytest.mark.slow
def test_the_global_batch_of_two_ranks_is_one_batch(tmp_path: Path) -> None:
    """``scope: global_batch`` counts over the ranks of one pass, as one process does with all their tokens."""
    load = "load={use: load_balance, weight: 0.5, scope: global_batch}"
    options = ["model.moe.balancers.sequence=null", SET + load]
    runs = [
        {"recipe": "deepseek_v3", "precision": "64-true", "steps": 3, "accumulate": 1, "ep": ep, "together": 2,
         "recompute": again, "options": options}
        for ep, again in ((1, "none"), (2, "none"), (2, "blocks"))
    ]  # fmt: skip
    check(runs_in(tmp_path, 2, runs, timeout=600))


@pytest.mark.slow
def test_every_local_dispatcher_of_an_expert_group_equals_one_process(tmp_path: Path) -> None:
    """With ep 2 on four ranks, each expert is on two of them: kernels use weights that FSDP has all-gathered."""
    runs = [
        {"recipe": "deepseek_v3", "precision": "64-true", "steps": 2, "accumulate": 2, "ep": ep, "recompute": again,
         "options": [f"model.moe.dispatcher={{use: {use}}}"]}
        for use, ep, again in product(("loop", "grouped", "fused", "auto"), (2, 4), ("none", "experts"))
    ]  # fmt: skip
    check(runs_in(tmp_path, 4, runs, timeout=900))
