"""NaN or infinity on one rank: all ranks decide alike, and report the same part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import run_forked, run_ranks
from tiny_runs import prepare

SCRIPT = Path(__file__).with_name("non_finite_rank.py")
EXPERTS = "blocks.1.ffn.experts"
BACKWARDS = "the forward pass is finite, the gradients are not, backwards from:"
LAYOUTS = {
    "ddp": ["trainer.strategy=ddp"],
    "sharded": ["trainer.strategy={use: sharded}"],
    "experts sharded": ["trainer.strategy={use: sharded, ep: 2}"],
    "experts sharded, fused": ["trainer.strategy={use: sharded, ep: 2}", "model.moe.dispatcher={use: fused}"],
}


def results_of(folder: Path, layout: str, start: Callable[..., str]) -> dict[str, dict[str, Any]]:
    """The result of each run, which both ranks must agree on."""
    prepare(folder)
    options = [
        *LAYOUTS[layout], f"data.path={folder / 'text'}", "trainer.devices=2", "trainer.max_steps=4",
        "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false",
        "trainer.deterministic=false",
    ]  # fmt: skip
    start(SCRIPT, 2, str(folder / "tiny.yaml"), json.dumps(options), str(folder))
    one, two = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for name, result in one.items():  # which tensors move depends on a rank's shards
        assert two[name]["error"] == result["error"] and two[name]["count"] == result["count"]
        assert two[name]["finite"] == result["finite"] or "skip" not in name
    found: dict[str, dict[str, Any]] = one
    return found


def check(found: dict[str, dict[str, Any]]) -> None:
    where = {name: result["error"].splitlines()[1].strip() for name, result in found.items() if "stop" in name}
    assert where["weight stop"] == f"weights that are not finite: expert 5 of {EXPERTS} (w_down_EOH)"
    assert where["overflow stop"] == f"first not finite: expert 5 of {EXPERTS} (inputs and weights are finite)"
    attention = "blocks.0.attention (GroupedQueryAttention; inputs and weights are finite)"
    assert where["activation stop"] == f"first not finite: {attention}"
    assert where["gradient stop"].startswith(f"{BACKWARDS} blocks.0.ffn (w_")
    for name in ("activation", "gradient"):
        assert found[f"{name} stop"]["error"].startswith("step 2: the loss is")
        skipped = found[f"{name} skip"]
        assert skipped == {"error": "", "count": 1, "moved": [False, True, True], "finite": True}, name


def test_two_ranks_that_share_experts_report_the_same_part(tmp_path: Path) -> None:
    check(results_of(tmp_path, "experts sharded", run_forked))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "sharded", "experts sharded, fused"])
def test_two_ranks_report_the_same_part_in_every_layout(tmp_path: Path, layout: str) -> None:
    check(results_of(tmp_path, layout, run_ranks))
