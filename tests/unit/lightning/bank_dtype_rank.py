"""Run in two ranks by ``test_fsdp``: experts that are all-gathered in bf16 against those that are gathered in fp32."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_fsdp import OPTIONS

from moekit import load
from moekit.contracts import Init
from moekit.registry import build
from moekit.shards import local
from moekit.training.run.prepare import quiet
from moekit.weights import init_weights
from moekit_lightning.sharded.fsdp import shard

Seen = dict[str, torch.Tensor]


def run(dispatcher: str, bank_dtype: torch.dtype | None) -> Seen:
    """The output, and this rank's shard of each reduced gradient, under autocast."""
    recipe = load("deepseek_v3", [*OPTIONS, f"model.moe.dispatcher={{use: {dispatcher}}}"])
    model: Any = build(recipe.model)
    init_weights(model, Init(std=0.5), seed=3)
    shard(model, 1, "cpu", replicate_dense=True, bank_dtype=bank_dtype)
    tokens_BS = torch.randint(0, 48, (4, 16), generator=torch.Generator().manual_seed(dist.get_rank()))
    dtypes = set()
    bank = model.blocks[1].ffn.experts
    model.blocks[1].ffn.router.register_forward_hook(lambda *args: dtypes.add(next(bank.parameters()).dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(tokens_BS).y
    assert dtypes == {bank_dtype or torch.float32}, dtypes
    y.float().square().mean().backward()
    gradients = {name: local(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return {"y": y.detach(), **gradients}


@quiet()
def main(out: str, *dispatchers: str) -> None:
    dist.init_process_group("gloo")
    different = []
    for dispatcher in dispatchers:
        narrow, wide = (run(dispatcher, dtype) for dtype in (torch.bfloat16, None))
        assert narrow.keys() == wide.keys() and any(".experts." in name for name in narrow)
        different += [f"{dispatcher}: {name}" for name in wide if not torch.equal(narrow[name], wide[name])]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, different)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
