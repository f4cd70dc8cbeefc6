"""Run in every rank by ``test_layouts``: train, save and resume, in one layout after another."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from tiny_runs import TINY_V3

from moekit.spec import load
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer, quiet

OPTIONS = [
    *TINY_V3, "model.moe.router.input_jitter=0.1", "model.init_std=0.3", "model.init_scale=null",
    "data.use=text_files", "data.validation=0.3", "data.validation_windows=8", "trainer.gradient_clip_val=0.5",
    "trainer.enable_progress_bar=false", "optimizer.lr=1e-2", "trainer.max_steps=8",
]  # fmt: skip


class StopAt(L.Callback):
    """Stops training early, with the schedule of the whole run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step + 1 == self.step:
            trainer.should_stop = True


@quiet()
def train(stage: Mapping[str, Any], world: int) -> None:
    """Trains to a step, from the start or from a checkpoint; saves once more at the path ``again``, if given."""
    options = [
        *OPTIONS, f"data.path={stage['text']}", f"trainer.precision={stage['precision']}", f"trainer.devices={world}",
        f"trainer.val_check_interval={4 * stage['accumulate']}",
        f"trainer.accumulate_grad_batches={stage['accumulate']}", *stage.get("options", ()),
    ]  # fmt: skip
    if world > 1:
        dense = stage.get("dense", "shard")
        options.append(f"trainer.strategy={{use: sharded, ep: {stage['ep']}, dense: {dense}}}")
    recipe = load("deepseek_v3", options)
    module = LitMoE(recipe)
    trainer = make_trainer(recipe, RunFolder(Path(stage["folder"])), callbacks=[StopAt(stage["to"])])
    trainer.fit(module, ckpt_path=stage.get("start"))
    if "again" in stage:
        trainer.save_checkpoint(stage["again"])


def main(plan: str) -> None:
    for stage in json.loads(Path(plan).read_text()):
        train(stage, int(os.environ["WORLD_SIZE"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
