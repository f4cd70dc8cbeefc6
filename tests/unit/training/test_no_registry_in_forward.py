"""Registry, specs and pluggy build a model; a training step calls none of their code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pluggy
import pytest
import torch

from moekit import registry, spec
from moekit.training.balance import BalanceStep
from moekit.training.data import batch_at
from moekit.training.module import LitMoE

OURS = (registry.__file__, f"{Path(spec.__file__).parent}/")
PLUGGY = f"{Path(pluggy.__file__).parent}/"
LAYER = str(Path(registry.__file__).parent / "moe_layer.py")

Tree = dict[str, Any]


@contextmanager
def entered(where: tuple[str, ...]) -> Iterator[list[str]]:
    """The functions in some files or folders that are called meanwhile: file and name."""
    found: list[str] = []

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(where):
            found.append(f"{frame.f_code.co_filename}: {frame.f_code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("dispatcher", ["grouped", "auto", "loop", "capacity"])
def test_a_training_step_calls_no_registry_spec_or_pluggy_code(dispatcher: str, recipe: Callable[..., Tree]) -> None:
    tree = recipe()
    options = {"factor": 1.0} if dispatcher == "capacity" else {}
    tree["model"]["moe"]["dispatcher"] = {"use": dispatcher, **options}
    tree["model"]["mtp"] = {"depth": 1}
    tree["model"]["moe"]["balancers"]["sequence"] = {"use": "sequence_balance", "weight": 1.0e-4}
    module = LitMoE(tree)
    data = module.prepare()
    optimizer = torch.optim.AdamW(module.parameters())
    balance = BalanceStep(module.model)

    def step(number: int) -> None:
        batch = batch_at(data, seed=0, step=number)
        output = module.model.on(batch)
        module.objective(output, batch).total.backward()
        balance.observe(output.reports)
        balance.step()
        optimizer.step()

    with entered((*OURS, LAYER)) as first:
        step(0)
    with entered((*OURS, PLUGGY, LAYER)) as second:  # torch imports lazily, under an import hook of pytest's, once
        step(1)
    for found in (first, second):
        layer = [line for line in found if line.startswith(LAYER)]
        assert any("MoELayer.forward" in line for line in layer), "the profile has no layer, so it shows nothing"
        assert set(found) == set(layer)


def test_building_calls_them(recipe: Callable[..., Tree]) -> None:
    with entered(OURS) as found:
        LitMoE(recipe())
    assert any("build" in line for line in found)
