"""A plan's bytes on a device, against what the ranks of a real run hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import run_forked, run_ranks
from sharded_run import SMALL

from moekit import load
from moekit.planning.plan import Planner
from moekit.planning.request import Request

RUN = Path(__file__).with_name("planning_run.py")


def check(start: Callable[..., str], world: int, layouts: str, out: Path) -> None:
    start(RUN, world, layouts, str(out))
    for row in json.loads(out.read_text()):
        ep, optimizer = row["ep"], row["optimizer"]
        recipe = load("deepseek_v3", [*SMALL["deepseek_v3"], "data=null", f"optimizer={{use: {optimizer}}}"])
        request = Request(
            devices=world, eps=(ep,), batch=1, sequence=6, accumulate=1, precision="32-true", device_memory=1
        )
        memory = Planner(recipe).plan(request, "none").rows[0].memory
        for term in ("parameters", "gradients", "optimizer"):
            held = [rank[term] for rank in row["ranks"]]
            assert getattr(memory, term) == max(held), (ep, optimizer, term, held)


def test_two_ranks(tmp_path: Path) -> None:
    check(run_forked, 2, "1:adamw,2:adamw", tmp_path / "held.json")


@pytest.mark.slow
def test_four_ranks(tmp_path: Path) -> None:
    check(run_ranks, 4, "1:adamw,2:adamw,4:adamw,2:sgd", tmp_path / "held.json")
