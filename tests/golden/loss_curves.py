"""Fifty optimizer steps of two tiny recipes, as losses, loads and drops: what the golden curves compare.

    python tests/golden/loss_curves.py            # stores both curves
    python tests/golden/loss_curves.py switch     # stores this one alone

A curve passes through the whole of training: reading text, sampling, micro-batches, balancers, clipping, optimizer and
schedule. A forward pass (``golden.py``) sees none of these. Store a curve anew only if training was meant to change,
and say in the commit what changed.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from golden import store

from moekit.machine import processor_name
from moekit.spec import load
from moekit.training import LitMoE

FOLDER = Path(__file__).with_name("curves")
STEPS = 50
TINY = ["model.dim=16", "model.ffn.hidden=16", "compare=null", f"trainer.max_steps={STEPS}"]
TEXT = "use: text_files, seq: 24, batch: 4, path: 'FOLDER/train', validation_path: 'FOLDER/held_out'"
TRAINING = (2, 7, 3, 4, 1)
"""The texts that train, in the order in which the stored curves read them."""
CURVES = {
    "deepseek_v3": [
        *TINY, "model.depth=2", "model.moe.experts={use: glu, count: 8, hidden: 8}", "model.moe.shared.hidden=8",
        "model.moe.router.top_k=2", "model.moe.router.groups=4", "model.moe.router.top_groups=2",
        "model.moe.dispatcher={use: grouped}",
        "model.attention={use: mla, heads: 2, query_rank: 8, kv_rank: 8, nope_dim: 4, rope_dim: 4, value_dim: 4}",
        f"data={{{TEXT}}}",
    ],
    "switch": [
        *TINY, "model.moe.experts={use: glu, count: 4, hidden: 16, activation: gelu}",
        "model.moe.dispatcher={use: capacity, factor: 1.0}", "model.attention={use: relative, heads: 2, head_dim: 8}",
        "model.cross={heads: 2, head_dim: 8}", f"data.text={{{TEXT}}}",
    ],
}  # fmt: skip
"""Overrides by recipe: a sparse decoder with two micro-batches a step, and capacity with dropped pairs."""
ACCUMULATE = {"deepseek_v3": 2, "switch": 1}


class Recorder(L.Callback):
    """Keeps the training loss and the dropped pairs of every step, and the load of the last."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.dropped: list[int] = []
        self.load: dict[str, list[int]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, LitMoE)
        if trainer.global_step > len(self.loss):  # otherwise the step has more micro-batches
            assert pl_module.step_load is not None
            self.loss.append(pl_module.logged["train/loss"])
            self.dropped.append(sum(int(count) for count in pl_module.step_load.dropped.values()))
            self.load = {layer: load_E.tolist() for layer, load_E in pl_module.step_load.load_E.items()}


def write_text(folder: Path) -> None:
    """Writes eight files of made-up sentences, the same on every machine and Python version."""
    rng = random.Random(0)
    words = ["".join(chr(97 + int(26 * rng.random())) for _ in range(2 + int(6 * rng.random()))) for _ in range(40)]
    for i in range(8):
        text = " ".join(words[int(40 * rng.random() ** 2)] for _ in range(150))
        name = f"train/{TRAINING.index(i)}.txt" if i in TRAINING else f"held_out/{i}.txt"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def curve(name: str, folder: Path) -> dict[str, Any]:
    """Trains a recipe in double precision on one thread, on text written to ``folder``.

    Double precision, so that a processor that adds in another order sends no token to another expert.
    """
    write_text(folder)
    torch.set_num_threads(1)
    options = [option.replace("FOLDER", folder.as_posix()) for option in CURVES[name]]
    module, recorder = LitMoE(load(name, options)), Recorder()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision="64-true", max_steps=STEPS, limit_val_batches=0,
        accumulate_grad_batches=ACCUMULATE[name], gradient_clip_val=1.0, log_every_n_steps=1, callbacks=[recorder],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    return {"loss": recorder.loss, "dropped": recorder.dropped, "load": recorder.load}


def machine() -> dict[str, str]:
    """What decides the order in which sums are taken: the torch version and the processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__.partition("+")[0], "processor": f"{processor_name()}, {capability}"}


def main(names: list[str]) -> None:
    """Stores the named curves, or both."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or CURVES:
        with tempfile.TemporaryDirectory() as folder:
            found = {"machine": machine(), **curve(name, Path(folder))}
        store(found, FOLDER / f"{name}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
