"""Runs the evaluators of a recipe on its trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from moekit.contracts import Data, Evaluation, Evaluator, Model, Trained
from moekit.inference.generate import greedy


@torch.no_grad()
def evaluate(
    evaluators: Mapping[str, Evaluator], model: Model, data: Data, folder: Path, *, device: torch.device | None = None
) -> Evaluation:
    """The values and files of all evaluators, one after the other. The model's mode is restored.

    A value whose name an earlier evaluator has taken is named ``<evaluator>/<name>``.

    Args:
        evaluators: by their name in the recipe.
        model: the trained model.
        data: prepared.
        folder: for files.
        device: where the model runs; it is on the CPU afterwards. None: where it is.
    """
    trained = Trained(model=model, data=data, folder=folder, generate=greedy(model, data.tokenizer))
    values: dict[str, float] = {}
    files: list[Path] = []
    was_training = model.training
    model.eval()
    if device is not None:
        model.to(device)
    try:
        for entry, evaluator in evaluators.items():
            found = evaluator.evaluate(trained)
            values |= {f"{entry}/{name}" if name in values else name: value for name, value in found.values.items()}
            files += found.files
    finally:
        model.train(was_training)
        if device is not None:
            model.to("cpu")
    return Evaluation(values=values, files=files)
