"""The source files that three calls enter: a token's forward pass, the end of an optimizer step, a checkpoint save.

python benchmarks/call_paths.py [--files]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

import moekit
from moekit import MoELayer, load
from moekit.training import AtomicCheckpointIO, LitMoE
from moekit.training.callbacks.checkpoint import SaveCheckpoints

ROOT = Path(moekit.__file__).parents[1]
SOURCES = (str(ROOT / "moekit"), str(ROOT / "plugins"))
TINY = ["model.depth=2", "model.dim=32", "data.batch=2", "data.seq=32", "trainer.accumulate_grad_batches=2"]


def entered(call: Callable[[], object]) -> list[str]:
    """The files of moekit and its plugins whose functions a call enters, in the order of the first entry."""
    files: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(SOURCES) and frame.f_code.co_name != "<module>":
            files[str(Path(name).relative_to(ROOT))] = None

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(files)


def token() -> list[str]:
    """The forward pass of one layer of ``deepseek_v3``, after a first one."""
    model: Any = load("deepseek_v3").model
    layer, x = MoELayer.from_spec(model.moe, dim=model.dim), torch.randn(2, 16, model.dim)
    layer(x)
    return entered(lambda: layer(x))


class Probe(LitMoE):
    """Notes what its second optimizer step enters, which is logged as every step is here."""

    step_files: list[str]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.step_files = entered(lambda: super(Probe, self).on_before_optimizer_step(optimizer))


def step_and_save() -> tuple[list[str], list[str]]:
    """The end of the last of three optimizer steps, and the save after it."""
    module, saves = Probe(load("deepseek_v3", TINY)), []
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=3, accumulate_grad_batches=2, log_every_n_steps=1, limit_val_batches=0, num_sanity_val_steps=0,
            logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
            plugins=[AtomicCheckpointIO()], callbacks=[SaveCheckpoints(Path(folder) / "checkpoints")],
            default_root_dir=folder,
        )  # fmt: skip
        save = trainer.save_checkpoint
        trainer.save_checkpoint = lambda *args, **kwargs: saves.append(entered(lambda: save(*args, **kwargs)))  # type: ignore[method-assign]
        trainer.fit(module)
    return module.step_files, saves[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="name the files")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    step, save = step_and_save()
    for name, files in (("token", token()), ("end of a step", step), ("save", save)):
        print(f"{name:<14}{len(files):>3} files")
        if args.files:
            print("\n".join(f"    {file}" for file in files))


if __name__ == "__main__":
    main()
