"""Any layout resumes a checkpoint of any other: model, optimizer, schedule, balancers, position in the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_run import train
from ranks import run_forked, run_ranks
from states import assert_same_tensors
from tiny_runs import state_of
from torch import Tensor

from moekit.checkpoints.reading import is_intact, open_checkpoint
from moekit.inference.generate import load_run

SCRIPT = Path(__file__).with_name("checkpoint_run.py")
Stage = dict[str, Any]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of text."""
    root = tmp_path / "text"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.txt").write_text(f"the quick brown fox {i} jumps over the lazy dog. " * 20)
    return root


def ranks(tmp_path: Path, world: int, stages: list[Stage], start: Callable[..., str] = run_ranks) -> None:
    """Runs stages one after the other, in ``world`` ranks."""
    plan = tmp_path / f"plan{world}.json"
    plan.write_text(json.dumps(stages))
    start(SCRIPT, world, str(plan))


def state(path: Path | str) -> dict[str, Tensor]:
    """The model's and the optimizer's tensors of a checkpoint, by name."""
    assert is_intact(Path(path))
    return state_of(open_checkpoint(Path(path)).whole())


def assert_equal(found: Path | str, expected: Path | str) -> None:
    """Bit for bit, in any order."""
    assert_same_tensors(state(found), state(expected), more_than=60)


def assert_near(found: Path | str, expected: Path | str) -> None:
    """To rounding in fp64, since ranks add in another order. Loads are equal, and so are biases."""
    a, b = state(found), state(expected)
    assert a.keys() == b.keys()
    for name in a:
        if "bias_E" in name:
            assert torch.equal(a[name], b[name]), name
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-9, msg=name)


def step(folder: Path, step: int) -> str:
    return str(folder / "checkpoints" / f"step-{step:08d}")


def test_two_ranks_and_one_process_resume_each_others_checkpoints(tmp_path: Path, text: Path) -> None:
    """Two ranks that share experts, one micro-batch each, against one process that accumulates two; fp64."""
    common = {"text": str(text), "precision": "64-true"}
    one, two = {**common, "accumulate": 2}, {**common, "accumulate": 1, "ep": 2}
    train({**one, "folder": str(tmp_path / "whole"), "to": 8}, 1)
    train({**one, "folder": str(tmp_path / "one"), "to": 4}, 1)
    at_four, background = step(tmp_path / "one", 4), ["checkpoints.asynchronous=true"]
    ranks(tmp_path, 2, [
        {**two, "folder": str(tmp_path / "two"), "to": 4, "options": background},
        {**two, "folder": str(tmp_path / "two"), "to": 8, "start": at_four, "options": background},
        {**two, "folder": str(tmp_path / "none"), "to": 4, "start": at_four, "options": ["trainer.max_steps=4"],
         "again": str(tmp_path / "again")},
        {**two, "folder": str(tmp_path / "replicated"), "to": 8, "start": at_four, "dense": "replicate"},
    ], run_forked)  # fmt: skip
    files = {path.name for path in Path(step(tmp_path / "two", 4)).iterdir()}
    assert {f"tensors-0000{rank}-of-00002.safetensors" for rank in (1, 2)} < files
    assert_equal(tmp_path / "again", at_four)  # one process -> two ranks -> one file again
    assert_near(step(tmp_path / "two", 4), at_four)
    assert_near(step(tmp_path / "two", 8), step(tmp_path / "whole", 8))
    assert_near(step(tmp_path / "replicated", 8), step(tmp_path / "whole", 8))
    train({**one, "folder": str(tmp_path / "back"), "to": 8, "start": step(tmp_path / "two", 4)}, 1)
    assert_near(step(tmp_path / "back", 8), step(tmp_path / "whole", 8))
    saved = open_checkpoint(Path(step(tmp_path / "two", 4))).whole()["state_dict"]
    for name, tensor in load_run(step(tmp_path / "two", 4)).model.state_dict().items():
        assert torch.equal(tensor, saved[f"model.{name}"].to(tensor.dtype)), name


@pytest.mark.slow
@pytest.mark.parametrize("ep", [4, 2, 1])
def test_reduced_optimizer_state_fits_any_layout(ep: int, tmp_path: Path, text: Path) -> None:
    """Adafactor shards its state differently from its parameters: from four ranks to one and back."""
    adafactor = ["optimizer=null", "optimizer={use: adafactor}"]
    common = {"text": str(text), "precision": "64-true", "options": adafactor}
    one, four = {**common, "accumulate": 4}, {**common, "accumulate": 1, "ep": ep}
    train({**one, "folder": str(tmp_path / "whole"), "to": 8}, 1)
    ranks(tmp_path, 4, [{**four, "folder": str(tmp_path / "four"), "to": 4}])
    at_four = step(tmp_path / "four", 4)
    train({**one, "folder": str(tmp_path / "one"), "to": 8, "start": at_four}, 1)
    assert_near(step(tmp_path / "one", 8), step(tmp_path / "whole", 8))
    read = {**one, "to": 4, "start": at_four, "options": [*adafactor, "trainer.max_steps=4"]}
    train({**read, "folder": str(tmp_path / "none"), "again": str(tmp_path / "again")}, 1)
    assert_equal(tmp_path / "again", at_four)
    ranks(tmp_path, 4, [{**four, "folder": str(tmp_path / "back"), "to": 8, "start": str(tmp_path / "again")}])
    assert_near(step(tmp_path / "back", 8), step(tmp_path / "whole", 8))


SHARDED = [(before, "shard", after, "shard") for before in (4, 2, 1) for after in (2, 1)]
REPLICATED = [(4, "replicate", 2, "replicate"), (2, "replicate", 1, "shard"), (1, "shard", 2, "replicate")]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "dense", "after", "dense_after"), [*SHARDED, *REPLICATED])
def test_a_checkpoint_read_and_saved_in_other_layouts_keeps_its_bits(
    before: int, dense: str, after: int, dense_after: str, tmp_path: Path, text: Path
) -> None:
    """From four ranks, in expert groups of 4, 2 or 1, to two, in groups of 2 or 1, to one process.

    The dense part is sharded or replicated.
    """
    common = {"text": str(text), "precision": "32-true"}
    four = {**common, "accumulate": 1, "ep": before, "dense": dense, "folder": str(tmp_path / "four"), "to": 4}
    ranks(tmp_path, 4, [four])
    start, done = step(tmp_path / "four", 4), ["trainer.max_steps=4"]
    again = {"start": start, "to": 4, "options": done}
    two = {**common, **again, "accumulate": 2, "folder": str(tmp_path / "a"), "again": str(tmp_path / "2")}
    ranks(tmp_path, 2, [{**two, "ep": after, "dense": dense_after}])
    assert_equal(tmp_path / "2", start)
    train({**two, "accumulate": 4, "folder": str(tmp_path / "b"), "again": str(tmp_path / "1")}, 1)
    assert_equal(tmp_path / "1", start)
    from_two = {"start": str(tmp_path / "2"), "again": str(tmp_path / "21")}
    train({**two, "accumulate": 4, "folder": str(tmp_path / "c"), **from_two}, 1)
    assert_equal(tmp_path / "21", start)
