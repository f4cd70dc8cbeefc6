"""One small forward pass of each recipe, in numbers: what the golden tests compare.

    python tests/golden/golden.py                 # stores every recipe's numbers
    python tests/golden/golden.py switch glam     # stores these alone

A changed number means that a paper is computed differently. Store numbers anew only if that is intended, and say in the
commit what changed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit import build, load
from moekit.contracts import Batch, Model, ModelOutput, Source
from moekit.registry import current
from moekit.spec.recipe import Recipe

FOLDER = Path(__file__).parent
SEQUENCES, LENGTH = 3, 16


def recipes() -> list[str]:
    """First-party recipes with data: those at paper size have none, and would not fit into memory.

    Without ``lineage/``: its parts are those of the others.
    """
    first_party = [c.name for c in current().recipes if c.plugin == "papers"]
    return [name for name in first_party if load(name).data is not None and not name.startswith("lineage/")]


def numbers(name: str) -> dict[str, Any]:
    """A model's outputs for one made-up batch, in evaluation and in training mode.

    In double precision, so that a machine that adds in another order sends no token to another expert.
    """
    recipe = load(name)
    torch.manual_seed(0)
    model: Model = build(recipe.model).double()
    batch = made_up(recipe)
    out = {}
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        torch.manual_seed(1)  # noise and dropout
        with torch.no_grad():
            out[mode] = summary(model.on(batch))
    return out


def made_up(recipe: Recipe) -> Batch:
    """Random tokens or cases; the second sequence ends in padding."""
    generator = torch.Generator().manual_seed(2)
    model: Any = recipe.model
    if model.takes == "cases":
        x_TD = torch.randn(LENGTH, model.inputs, generator=generator, dtype=torch.float64)
        return Batch(x_TD, x_TD[:, :1])
    tokens, source = (torch.randint(model.vocab, (SEQUENCES, LENGTH + 1), generator=generator) for _ in range(2))
    valid = torch.ones(SEQUENCES, LENGTH, dtype=torch.bool)
    valid[1, LENGTH // 2 :] = False
    paired = Source(source[:, 1:], valid) if model.takes == "pairs" else None
    return Batch(tokens[:, :-1], tokens[:, 1:], valid, source=paired)


def summary(output: ModelOutput) -> dict[str, Any]:
    """The output's size and a few of its entries, and every layer's load, drops and losses."""
    layers = {
        layer: {
            "load": report.load_E.tolist(),
            "dropped": int(report.dropped),
            "losses": {term: float(loss.value) for term, loss in report.losses.items()},
        }
        for layer, report in output.reports.items()
    }
    return {"y": sketch(output.y), "future": [sketch(y) for y in output.future], "layers": layers}


def sketch(y: Tensor) -> dict[str, Any]:
    """Shape, size and eight entries spread over a tensor."""
    flat = y.flatten()
    picked = flat[torch.linspace(0, len(flat) - 1, 8).long()]
    return {"shape": list(y.shape), "norm": float(flat.norm()), "entries": picked.tolist()}


def path_of(name: str) -> Path:
    """The file of a recipe's numbers."""
    return FOLDER / f"{name.replace('/', '__')}.json"


def store(found: dict[str, Any], path: Path) -> None:
    """Writes JSON with one line for each list."""
    text = re.sub(r"\[[^\[\]{}]*\]", lambda row: " ".join(row[0].split()), json.dumps(found, indent=1))
    path.write_text(text + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    """Stores the numbers of the named recipes, or of all."""
    for name in names or recipes():
        store(numbers(name), path_of(name))
        print(path_of(name))


if __name__ == "__main__":
    main(sys.argv[1:])
