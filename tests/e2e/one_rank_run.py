"""Run by ``test_gpu`` in a process of its own: a run without and with a process group of one rank, on one device.

``one_rank_run.py DEVICE FOLDER`` prints what it found as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_runs import TINY_V3, saved, state_of
from torch import Tensor

import moekit
from moekit.parallel.mesh import EXPERT, expert_mesh
from moekit.routing import TokenChoice
from moekit_dispatchers.expert_parallel.exchange import exchange, plan_exchange
from moekit_testing.fixtures.routings import some_routing

SHARDED = ("trainer.strategy={use: sharded, ep: 1}", "checkpoints.asynchronous=true")


def trained(folder: Path, device: str, *options: str) -> dict[str, Tensor]:
    """All tensors of the last checkpoint of a run of six steps, which saves after every second."""
    run = moekit.train("deepseek_v3", [*options_on(device), *options], out=folder, compare=False, quiet=True)
    return state_of(saved(run.path))


def options_on(device: str) -> list[str]:
    """On a card under autocast."""
    card = device == "cuda"
    return [
        *TINY_V3, "schedule=null", "trainer.max_steps=6", "trainer.val_check_interval=2",
        "trainer.limit_val_batches=1", "trainer.deterministic=true", "data.megabytes=0.1", "trainer.devices=1",
        f"trainer.accelerator={'gpu' if card else 'cpu'}", f"trainer.precision={'bf16-mixed' if card else '32-true'}",
    ]  # fmt: skip


def stopped_and_resumed(folder: Path, device: str) -> dict[str, Tensor]:
    """The same in two pieces."""
    options = [*options_on(device), *SHARDED]
    first = moekit.train("deepseek_v3", [*options, "trainer.max_steps=4"], out=folder, compare=False, quiet=True)
    run = moekit.train(resume=first, overrides=["trainer.max_steps=6"], compare=False, quiet=True)
    return state_of(saved(run.path))


def exchanged(device: str) -> dict[str, float]:
    """Tokens sent to this same rank and back: each comes back once per rank of its experts, with its gradient."""
    T, D = 9, 5
    group = expert_mesh(1, device).get_group(EXPERT)
    routing = some_routing("token_choice", T, 4, dtype=torch.float32)
    assert isinstance(routing, TokenChoice)
    moved = {name: t.to(device) for name, t in vars(routing).items() if isinstance(t, Tensor)}
    routing = TokenChoice(**{**vars(routing), **moved})
    x_TD = torch.randn(T, D, device=device, requires_grad=True)
    plan = plan_exchange(routing, group)
    pending = exchange(group, plan.send_counts, plan.receive_counts, plan.rows(x_TD))
    pending.wait()
    y_TD = plan.sum(pending.tensors[0])
    (grad_TD,) = torch.autograd.grad(y_TD.square().sum(), x_TD)
    sent_T = torch.zeros(T, 1, device=device).index_fill(0, plan.token_N, 1.0)
    wrong, of_gradient = (y_TD - sent_T * x_TD).abs().max(), (grad_TD - 2 * sent_T * x_TD).abs().max()
    return {"rows": len(plan.token_N), "wrong": float(wrong), "gradient wrong": float(of_gradient)}


def main(device: str, folder: str) -> None:
    """First without a process group: once there is one, it stays."""
    top, found = Path(folder), dict[str, Any]()
    plain = trained(top / "plain", device)
    sharded = trained(top / "sharded", device, *SHARDED)
    found["backend"] = dist.get_backend()
    again = stopped_and_resumed(top / "resumed", device)
    found["tensors"] = len(plain)
    found["resumed differs"] = [name for name, t in sharded.items() if not torch.equal(t, again[name])]
    found["names differ"] = sorted(plain.keys() ^ sharded.keys())
    norms = {name: (sharded[name].double() - t.double()).norm() / t.double().norm() for name, t in plain.items()}
    found["apart"] = max(float(norm) for norm in norms.values() if norm.isfinite())
    found["exchange"] = exchanged(device)
    print("found", json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
