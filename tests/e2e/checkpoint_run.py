"""What ``test_layouts`` runs in every process: train, save, go on, in one layout after another."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from moekit.spec import load
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer, quiet

TINY = [
    "model.dim=16", "model.depth=2", "model.ffn.hidden=16", "model.mtp=null", "model.moe.experts.count=8",
    "model.moe.experts.hidden=8", "model.moe.shared.hidden=8", "model.moe.router.top_k=2", "model.moe.router.groups=2",
    "model.moe.router.top_groups=1", "model.attention={use: gqa, heads: 2, kv_heads: 1, head_dim: 8}",
    "model.moe.router.input_jitter=0.1", "model.init_std=0.3", "model.init_scale=null",
    "data.use=text_files", "data.validation=0.3", "data.seq=16", "data.batch=2", "data.validation_windows=8",
    "trainer.accelerator=cpu", "trainer.gradient_clip_val=0.5", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1", "optimizer.lr=1e-2",
]  # fmt: skip


class StopAt(L.Callback):
    """Breaks a run off: the schedule is that of the whole run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step + 1 == self.step:
            trainer.should_stop = True


def train(stage: Mapping[str, Any], world: int) -> None:
    """Trains to a step, from the start or from a checkpoint; then saves once more, as ``again``, if asked to."""
    options = [
        *TINY, f"data.path={stage['text']}", "trainer.max_steps=8", f"trainer.precision={stage['precision']}",
        f"trainer.val_check_interval={4 * stage['accumulate']}", "trainer.check_val_every_n_epoch=null",
        f"trainer.accumulate_grad_batches={stage['accumulate']}", f"trainer.devices={world}", *stage.get("options", ()),
    ]  # fmt: skip
    if world > 1:
        options.append(f"trainer.strategy={{use: sharded, ep: {stage['ep']}}}")
    recipe = load("deepseek_v3", options)
    module = LitMoE(recipe)
    trainer = make_trainer(recipe, RunFolder(Path(stage["folder"])), callbacks=[StopAt(stage["to"])])
    trainer.fit(module, ckpt_path=stage.get("start"))
    if "again" in stage:
        trainer.save_checkpoint(stage["again"])


def train_quietly(stage: Mapping[str, Any], world: int) -> None:
    """The same without Lightning's advice."""
    with quiet():
        train(stage, world)


def main(plan: str) -> None:
    for stage in json.loads(Path(plan).read_text()):
        train_quietly(stage, int(os.environ["WORLD_SIZE"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
