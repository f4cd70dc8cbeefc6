"""Two nodes, as network namespaces: their link carries what ``moekit plan`` says, and what all-to-alls were given."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import two_nodes
from two_nodes import CASES, NODES, PER_NODE, NoNamespacesError, Row, row_of, run_ranks

TOP = Path(__file__).parents[2]
FAR = 0.05  # of the planned rows: an untrained router prefers some experts by chance


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A row for each case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TOP / "benchmarks"), *filter(None, sys.path)]))
        try:
            counted = run_ranks(CASES)
        except NoNamespacesError as error:
            pytest.skip(str(error))
    for case in counted:
        assert len(case["ranks"]) == NODES * PER_NODE
        assert {rank["steps"] for rank in case["ranks"]} == {two_nodes.STEPS}
        assert [rank["node"] for rank in case["ranks"]] == [0, 0, 1, 1]
    return [row_of(case, each) for case, each in zip(CASES, counted, strict=True)]


@pytest.mark.slow
def test_nodes_send_each_other_what_the_plan_says(rows: list[Row]) -> None:
    """Exactly, for the rows that were sent; and these are as many as expected."""
    for row in rows:
        assert row.tokens == pytest.approx(row.by_plan, rel=1e-12), row.name
        assert row.rows == pytest.approx(row.plan.rows, rel=FAR), row.name
        assert row.tokens == pytest.approx(row.plan.exchanged, rel=FAR), row.name
    assert rows[0].tokens > 0 and rows[-1].tokens == 0, "with all experts in a node no token leaves it"


@pytest.mark.slow
def test_the_link_carries_what_was_sent_and_its_framing(rows: list[Row]) -> None:
    """All-to-alls to 1 %; all-gathers, which pad uneven shards, to 5 %; gloo reduces by an all-reduce: twice."""
    for row in rows:
        assert 0 < row.per_byte < 0.08, "headers of a packet of 1,448 bytes are 5 %"
        if row.tokens:
            assert row.link == pytest.approx(row.framed, rel=0.01), row.name
            assert 1 < row.link / row.tokens < 1.08, row.name
        else:
            assert abs(row.link) < 2**14, "what is left of waiting"
        assert 1 < row.gathers / row.plan.gathers < 1.05, row.name
        assert 2 < row.scatters / row.plan.scatters < 2.1, row.name


@pytest.mark.slow
def test_a_router_that_limits_a_token_to_one_node_sends_a_third_less(rows: list[Row]) -> None:
    free, *limited, _ = rows
    for row in limited:
        assert 0.6 < row.tokens / free.tokens < 0.72
        assert row.link / free.link == pytest.approx(row.tokens / free.tokens, rel=0.01)


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("echo 'unshare: Operation not permitted' >&2; exit 1", NoNamespacesError, "not allowed here: unshare"),
        ("exit 77", NoNamespacesError, "network namespaces are not allowed here"),
        ("echo boom; exit 1", RuntimeError, "the ranks ended with 1:\nboom"),
        ("", NoNamespacesError, "apt-get install iproute2"),
    ],
)
def test_a_machine_without_namespaces_is_not_taken_for_ranks_that_fail(
    script: str, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ip", "unshare") if script else ():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(error, match=said):
        run_ranks(CASES[:1])
