"""Sharded Adafactor: the numbers of one process, in every layout, also from the checkpoint of any other layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from ranks import run_forked, run_ranks

SCRIPT = Path(__file__).with_name("adafactor_ranks.py")


def assert_equal_to_one_process(start: Callable[..., str], out: Path, layouts: list[tuple[int, int]]) -> None:
    """Compares weights and state in fp64 on every rank, and counts messages."""
    start(SCRIPT, 4, str(out), json.dumps(layouts))
    ranks = json.loads(out.read_text())
    assert len(ranks) == 4
    for rows in zip(*ranks, strict=True):
        worst = {key: max(row[key] for row in rows) for key in ("weights", "state")}
        print(rows[0]["layout"], worst)
        assert max(worst.values()) <= 1e-12, (rows[0]["layout"], worst)
        assert all(row.get("sent", 0) <= 3 for row in rows), "more messages than sums that depend on each other"


def test_four_ranks_equal_one_process(tmp_path: Path) -> None:
    """Expert groups of 4, 2 and 1 ranks, with 4, 2 and 2 experts."""
    assert_equal_to_one_process(run_forked, tmp_path / "rows.json", [(4, 4), (2, 2), (1, 2)])


@pytest.mark.slow
@pytest.mark.parametrize("experts", [2, 4])
def test_every_layout_reads_every_other(tmp_path: Path, experts: int) -> None:
    eps = [ep for ep in (1, 2, 4) if ep <= experts]
    for before, after in permutations(eps, 2):
        folder = tmp_path / f"{before}-{after}"
        folder.mkdir()
        assert_equal_to_one_process(run_ranks, folder / "rows.json", [(before, experts), (after, experts)])
