"""A tiny mixture on text of two domains, for tests of statistics, reports and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moekit
from moekit.run import Run

Tree = dict[str, Any]
HOSTILE = "<script>alert('x')</script> </script> & \"quoted\" <img src=x onerror=alert(1)> "


def write_text(root: Path) -> Path:
    """Two domains of six files each; one of them is full of markup."""
    generator = torch.Generator().manual_seed(1)
    for domain, alphabet in (("low", "abcdefgh \n"), ("<b>high</b>", "STUVWXYZ 0123")):
        folder = root / domain.replace("/", "\N{FRACTION SLASH}")
        folder.mkdir(parents=True)
        for i in range(6):
            letters = torch.randint(0, len(alphabet), (600,), generator=generator).tolist()
            words = "".join(alphabet[k] for k in letters)
            (folder / f"{i}.txt").write_text(words if domain == "low" else HOSTILE * 3 + words, encoding="utf-8")
    return root


def tiny_recipe(text: Path, *, moe: Tree | None = None, trainer: Tree | None = None, **changes: Any) -> Tree:
    """A decoder of three layers, two of them mixtures of four experts, that trains in milliseconds."""
    layer: Tree = {
        "at": {"first": 1},
        "router": {"use": "topk", "top_k": 2, "score": "sigmoid", "renormalize": True},
        "experts": {"use": "glu", "count": 4, "hidden": 8},
        "dispatcher": {"use": "grouped"},
        "balancers": {"bias": {"use": "sign_bias", "rate": 0.01}},
    }
    return {
        "schema": 1,
        "name": "tiny",
        "model": {
            "use": "decoder", "vocab": 256, "dim": 16, "depth": 3,
            "attention": {"use": "gqa", "heads": 2, "kv_heads": 1, "head_dim": 8},
            "ffn": {"use": "glu", "hidden": 16}, "moe": {**layer, **(moe or {})},
        },
        "objective": {"use": "causal_lm"},
        "data": {
            "use": "text_files", "path": str(text), "seq": 16, "batch": 4, "validation_windows": 6,
        },
        "optimizer": {"use": "adamw", "lr": 3.0e-3},
        "trainer": {
            "max_steps": 8, "accelerator": "cpu", "val_check_interval": 4, "log_every_n_steps": 2,
            "enable_progress_bar": False, **(trainer or {}),
        },
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def tiny(text: Path) -> Callable[..., Tree]:
    """Makes the recipe, with changes."""

    def make(**changes: Any) -> Tree:
        return tiny_recipe(text, **changes)

    return make


@pytest.fixture(scope="session")
def run(tiny: Callable[..., Tree], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run."""
    return moekit.train(tiny(), out=tmp_path_factory.mktemp("runs"), quiet=True)
