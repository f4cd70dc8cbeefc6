"""Two ranks equal one process that accumulates the same batches: weights after AdamW, loads, bias, what is logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("ddp_run.py")
SPEC: dict[str, Any] = {
    "schema": 1,
    "model": {
        "use": "decoder",
        "vocab": 256,
        "dim": 16,
        "depth": 2,
        "attention": {"use": "gqa", "heads": 2, "kv_heads": 1, "head_dim": 8},
        "ffn": {"use": "glu", "hidden": 16},
        "moe": {
            "at": {"first": 1},
            "router": {"use": "topk", "top_k": 2, "score": "sigmoid", "renormalize": True},
            "experts": {"use": "glu", "count": 4, "hidden": 8},
            "dispatcher": {"use": "loop"},
            "balancers": {
                "bias": {"use": "sign_bias", "rate": 0.01},
                "load": {"use": "load_balance", "weight": 0.5, "scope": "step"},
            },
        },
    },
    "objective": {"use": "causal_lm"},
    "optimizer": {"use": "adamw", "lr": 1e-2},
}


def run(out: Path, *launcher: str) -> list[dict[str, Any]]:
    out.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(SCRIPT), json.dumps(SPEC), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(path, weights_only=True) for path in sorted(out.glob("rank*.pt"))]


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    (one,) = run(tmp_path / "one")
    two = run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
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
