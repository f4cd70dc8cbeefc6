"""A plan's memory and traffic, against what the ranks of a real run have and send."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import run_forked, run_ranks
from sharded_run import SMALL

from moekit import load
from moekit_plan.communication import DeviceTraffic
from moekit_plan.plan import RunPlanner
from moekit_plan.request import PlanRequest
from moekit_plan.traffic import COUNT_BYTES

RUN = Path(__file__).with_name("planning_run.py")


def check(start: Callable[..., str], world: int, layouts: str, out: Path) -> None:
    start(RUN, world, layouts, str(out))
    for row in json.loads(out.read_text()):
        size, optimizer, precision, dense = row["layout"].split(":")
        ep = int(size)
        recipe = load("deepseek_v3", [*SMALL["deepseek_v3"], "data=null", f"optimizer={{use: {optimizer}}}"])
        request = PlanRequest(
            devices=world, eps=(ep,), batch=1, sequence=6, accumulate=1, precision=precision, device_memory=1,
            dense=dense,
        )  # fmt: skip
        plan = RunPlanner(recipe).plan(request, "none").rows[0]
        for term in ("parameters", "gradients", "optimizer"):
            held = [rank[term] for rank in row["ranks"]]
            assert getattr(plan.memory, term) == max(held), (row["layout"], term, held)
        check_traffic(plan.traffic, row["ranks"], ep)


def check_traffic(planned: DeviceTraffic, ranks: list[dict[str, int]], ep: int) -> None:
    """A plan takes the mean number of rows; per row, it states exactly what all ranks together sent."""
    assert all(rank["messages"] == planned.messages for rank in ranks)
    assert all(2 * rank["summed"] * (len(ranks) - 1) / len(ranks) == planned.sums for rank in ranks)
    total = {name: sum(rank[name] for rank in ranks) for name in ("sent", "rows")}
    if ep == 1:
        assert total == {"sent": 0, "rows": 0} and not planned.exchanged
        return
    counts = len(planned.layers) * (ep - 1) * COUNT_BYTES  # of a rank: how many rows follow
    rows = sum(layer.rows * layer.bytes / layer.bytes_per_token for layer in planned.layers.values())
    of_a_row = (planned.exchanged - counts) / rows
    assert total["rows"] > 0
    assert total["sent"] == pytest.approx(len(ranks) * counts + total["rows"] * of_a_row, rel=1e-12)


def test_two_ranks_have_and_send_what_was_planned(tmp_path: Path) -> None:
    check(
        run_forked,
        2,
        "1:adamw:32-true:shard,2:adamw:32-true:replicate,2:adamw:bf16-mixed:shard",
        tmp_path / "held.json",
    )


@pytest.mark.slow
def test_four_ranks_have_and_send_what_was_planned(tmp_path: Path) -> None:
    layouts = (
        "1:adamw:32-true:shard,2:adamw:bf16-mixed:shard,4:adamw:bf16-true:shard,4:adamw:32-true:shard,"
        "2:sgd:64-true:shard,1:adamw:bf16-true:replicate,2:sgd:32-true:replicate,4:adamw:32-true:replicate"
    )
    check(run_ranks, 4, layouts, tmp_path / "held.json")
