"""``moekit`` as a command that records its micro-batches, and one of whose ranks may send itself a signal.

``interrupted_rank.py FOLDER RANK STEP SIGNAL train ...``: each rank writes a line for each micro-batch, its step and
hash, to a file of its own in FOLDER. In step STEP, rank RANK sends itself SIGNAL, a number; with STEP 0, while it sets
up its data; with STEP -n, while it validates after step n. RANK -1: no rank.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from moekit import Batch
from moekit.cli import main
from moekit.training import LitMoE

FOLDER, RANK, STEP, SIGNAL = Path(sys.argv[1]), *map(int, sys.argv[2:5])
training_step, validation_step = LitMoE.training_step, LitMoE.validation_step
train_dataloader = LitMoE.train_dataloader


def interrupted_train_dataloader(module: LitMoE) -> Any:
    if module.global_rank == RANK and STEP == 0:
        os.kill(os.getpid(), SIGNAL)
    return train_dataloader(module)


def recorded_training_step(module: LitMoE, batch: Batch, batch_idx: int) -> Tensor:
    step = module.trainer.global_step + 1
    digest = hashlib.sha256(batch.inputs.numpy().tobytes()).hexdigest()
    with (FOLDER / f"{module.global_rank}.txt").open("a") as file:
        file.write(f"{step} {digest}\n")
    loss = training_step(module, batch, batch_idx)
    if module.global_rank == RANK and step == STEP:
        os.kill(os.getpid(), SIGNAL)
    return loss


def interrupted_validation_step(module: LitMoE, batch: Batch, batch_idx: int) -> None:
    validation_step(module, batch, batch_idx)
    if module.global_rank == RANK and module.trainer.global_step == -STEP:
        os.kill(os.getpid(), SIGNAL)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    LitMoE.train_dataloader = interrupted_train_dataloader  # type: ignore[method-assign]
    LitMoE.training_step = recorded_training_step  # type: ignore[method-assign]
    LitMoE.validation_step = interrupted_validation_step  # type: ignore[method-assign]
    sys.exit(main(sys.argv[5:]))
