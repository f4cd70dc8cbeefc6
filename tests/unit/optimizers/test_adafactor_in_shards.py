"""Adafactor where no rank has a tensor whole: as in one process, in every layout, from any layout's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from ranks import run_forked, run_ranks

SCRIPT = Path(__file__).with_name("adafactor_run.py")


def check(start: Callable[..., str], out: Path, layouts: list[tuple[int, int]]) -> None:
    """Weights and state in fp64, on every rank; and how much is sent."""
    start(SCRIPT, 4, str(out), json.dumps(layouts))
    ranks = json.loads(out.read_text())
    assert len(ranks) == 4
    for rows in zip(*ranks, strict=True):
        worst = {key: max(row[key] for row in rows) for key in ("weights", "state")}
        print(rows[0]["layout"], worst)
        assert max(worst.values()) <= 1e-12, (rows[0]["layout"], worst)
        assert all(row.get("sent", 0) <= 3 for row in rows), (
            "more messages than there are sums that wait for each other"
        )


def test_four_ranks_equal_one_process(tmp_path: Path) -> None:
    """Ranks that share the experts, and experts: each alone, two that have one expert, all that have two."""
    check(run_forked, tmp_path / "rows.json", [(4, 4), (2, 2), (1, 2)])


@pytest.mark.slow
@pytest.mark.parametrize("experts", [2, 4])
def test_every_layout_reads_every_other(tmp_path: Path, experts: int) -> None:
    eps = [ep for ep in (1, 2, 4) if ep <= experts]
    for before, after in permutations(eps, 2):
        folder = tmp_path / f"{before}-{after}"
        folder.mkdir()
        check(run_ranks, folder / "rows.json", [(before, experts), (after, experts)])
