"""Who writes what. That all that is dealt out is a tensor again: ``test_boxes``."""

from __future__ import annotations

import json

import torch
from test_boxes import Talk

from moekit.checkpoints.writing import make_plan
from moekit.shards.shard import unsharded


def test_work_is_shared_by_numbers_and_what_is_no_piece_is_the_first_ranks() -> None:
    """Of one large tensor and three small ones, which both ranks hold, one writes the large, the other the small."""
    sizes = {"large": 6, "a": 2, "b": 2, "c": 1, "own": 1}
    boxes = {name: unsharded(name, torch.zeros(1).expand(n << 20)) for name, n in sizes.items()}  # all worth sharing
    pieces = frozenset(sizes) - {"own"}
    asked = [Talk(rank, 2) for rank in range(2)]
    for ask in asked:
        make_plan(boxes, pieces, ask)
    assert [json.loads(ask.told).keys() for ask in asked] == [sizes.keys(), pieces]
    told = [ask.told for ask in asked]
    plans = [make_plan(boxes, pieces, Talk(rank, 2, told)) for rank in range(2)]
    assert [list(plan.mine) for plan in plans] == [["large", "own"], ["a", "b", "c"]]
