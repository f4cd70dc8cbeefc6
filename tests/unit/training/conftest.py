"""Tiny recipes and helpers that the training tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moekit.training.run.prepare import quiet

Tree = dict[str, Any]


def tiny_model(**moe: Any) -> Tree:
    """A decoder of two layers, the second a mixture of four experts."""
    layer: Tree = {
        "at": {"first": 1},
        "router": {"use": "topk", "top_k": 2, "score": "sigmoid", "renormalize": True},
        "experts": {"use": "glu", "count": 4, "hidden": 8},
        "dispatcher": {"use": "grouped"},
        "balancers": {"bias": {"use": "sign_bias", "rate": 0.01}},
    }
    return {
        "use": "decoder",
        "vocab": 256,
        "dim": 16,
        "depth": 2,
        "attention": {"use": "gqa", "heads": 2, "kv_heads": 1, "head_dim": 8},
        "ffn": {"use": "glu", "hidden": 16},
        "moe": {**layer, **moe},
    }


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text of two domains, four files each."""
    root = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(1)
    for domain, alphabet in (("low", "abcdefgh \n"), ("high", "STUVWXYZ .")):
        (root / domain).mkdir()
        for i in range(6):
            letters = torch.randint(0, len(alphabet), (600,), generator=generator).tolist()
            (root / domain / f"{i}.txt").write_text("".join(alphabet[k] for k in letters))
    return root


@pytest.fixture(scope="session")
def recipe(text: Path) -> Callable[..., Tree]:
    """Makes a plain recipe that trains in milliseconds: ``recipe(**changes at the top)``."""

    def make(**changes: Any) -> Tree:
        tree: Tree = {
            "schema": 1,
            "name": "tiny",
            "model": tiny_model(),
            "objective": {"use": "causal_lm"},
            "data": {
                "use": "text_files",
                "path": str(text),
                "seq": 8,
                "batch": 2,
                "validation": 0.34,
                "validation_windows": 3,
            },
            "optimizer": {"use": "adamw", "lr": 1e-2},
            "schedule": {"use": "cosine", "warmup": 2},
            "trainer": {"max_steps": 6, "accelerator": "cpu"},
        }
        return {**tree, **changes}

    return make


@pytest.fixture
def quiet_lightning() -> Iterator[None]:
    """Hides Lightning's tips and warnings."""
    with quiet():
        yield
