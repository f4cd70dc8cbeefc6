"""The plain loop of another library's model: it trains, and its parts add up to its steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import build, load
from moekit.contracts import Batch
from moekit_bench.measure import Settings
from moekit_bench.peers import PeerModel
from moekit_bench.step import STEPS, LoopRunner


@pytest.fixture
def loop() -> LoopRunner:
    recipe = load("deepseek_v3", ["data.domains=[python]", "data.megabytes=0.05", "data.seq=8", "data.batch=2"])
    assert recipe.data is not None
    data = build(recipe.data)
    data.prepare()
    model = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())

    peer = PeerModel(name="bigram", model=model, loss=loss, note="no mixture")
    return LoopRunner(peer, recipe, data, Settings())


def test_the_loop_has_the_recipes_optimizer_and_clipping(loop: LoopRunner) -> None:
    (group,) = loop.optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (3e-3, (0.9, 0.95), 0.1)
    assert loop.clip == 1.0


def test_only_rounds_that_count_are_kept_and_parts_add_up(loop: LoopRunner) -> None:
    before = [p.detach().clone() for p in loop.model.parameters()]
    assert loop.trial() > 0
    loop.round(counts=False)
    assert not loop.rounds and not loop.steps
    loop.round(counts=True)
    assert len(loop.rounds) == 1 and len(loop.steps) == STEPS - 2
    for step in loop.steps:
        assert step["step"] == pytest.approx(sum(seconds for part, seconds in step.items() if part != "step"))
    assert not any(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_what_the_loop_saves_for_backward_is_counted(loop: LoopRunner) -> None:
    saved = loop.saved()
    assert {((16, 8), 512), ((16, 256), 16384)} <= {(shape, size) for shape, _, size in saved.tensors}  # logits too
    assert saved.bytes < 20_000  # no weight


def test_the_row_has_the_models_parts_and_no_logging(loop: LoopRunner) -> None:
    loop.round(counts=True)
    row = loop.row(loop)
    assert (row.name, row.note, row.parameters) == ("bigram", "no mixture", 256 * 8 + 8 * 256 + 256)
    assert row.ratio is not None and row.ratio.best == 1.0
    assert row.logging_ms is None
    assert set(row.parts) == {"data", "forward", "backward", "optimizer"}
