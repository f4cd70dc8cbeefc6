"""Two DDP ranks equal one process that accumulates the same batches: weights after AdamW, loads, biases, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny_runs import prepare

SCRIPT = Path(__file__).with_name("ddp_run.py")
LOAD = "model.moe.balancers.load={use: load_balance, weight: 0.5, scope: step}"


def train(folder: Path, world: int) -> list[dict[str, Any]]:
    """What each rank saved."""
    out = folder / str(world)
    out.mkdir()
    run_ranks(SCRIPT, world, str(folder / "tiny.yaml"), str(out), LOAD, "data=null")
    return [torch.load(path, weights_only=True) for path in sorted(out.glob("rank*.pt"))]


@pytest.mark.slow
def test_two_ddp_ranks_equal_one_process(tmp_path: Path) -> None:
    prepare(tmp_path)
    (one,) = train(tmp_path, 1)
    two = train(tmp_path, 2)
    assert len(two) == 2
    for rank in two:
        assert torch.equal(rank["load"], one["load"])
        assert torch.equal(rank["bias"], one["bias"]) and one["bias"].any()
        for name, weight in one["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-7, atol=1e-9)
        for name in ("train/loss", "train/balance_loss", "train/max_violation", "tokens"):
            assert rank["logged"][name] == pytest.approx(one["logged"][name], rel=1e-9)
        assert rank["validation"] == pytest.approx(one["validation"], rel=1e-6)
        assert rank["validation"]["val/max_violation"] > 0
