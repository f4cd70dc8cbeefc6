"""A run whose weights are not those of its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

import moekit
from moekit.training.run.imported import write_run


def run_with(out: Path, options: list[str], change: Callable[[str, Tensor], object]) -> Path:
    """A run of ``base/language_model`` under these options, with every weight changed in place, by its name."""
    module = moekit.train("base/language_model", options, out=out, quiet=True).module
    weights = module.model.state_dict()
    for name, weight in weights.items():
        change(name, weight)
    assert module.data is not None
    meta = {name: weight.to("meta") for name, weight in weights.items()}
    write_run(out / "run", module.recipe, meta, lambda name: [weights[name]], module.data.state())
    return out / "run"
