"""Threads that compute experts in parallel: how experts are split over them, and that the caller is not affected."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.contracts import LayerDims
from moekit.routing import TokenChoice
from moekit_dispatchers.fused import Fused, thread_pool
from moekit_dispatchers.fused.module import FusedDispatcher
from moekit_dispatchers.fused.thread_pool import Share, run_shares, shares
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=12), threads=st.integers(1, 4))
def test_every_expert_has_one_thread_and_no_thread_too_many_rows(sizes: list[int], threads: int) -> None:
    found = shares(sizes, threads)
    assert 1 <= len(found) <= threads
    assert [e for share in found for e in range(share.first, share.last)] == list(range(len(sizes)))
    assert [share.row for share in found] == [sum(sizes[: share.first]) for share in found]
    if len(found) > 1:
        assert max(sum(sizes[s.first : s.last]) for s in found) * threads <= thread_pool.MOST_UNEVEN * sum(sizes)


def test_an_uneven_load_runs_on_one_thread() -> None:
    assert shares([1, 97, 1, 1], 2) == [Share(0, 4, 0)]
    assert shares([25, 25, 25, 25], 2) == [Share(0, 2, 0), Share(2, 4, 50)]
    assert shares([0, 0], 2) == [Share(0, 2, 0)]


def test_the_callers_number_of_threads_and_grad_mode_are_kept() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = run_shares(lambda s: (torch.get_num_threads(), torch.is_grad_enabled()), shares([1, 1], 2))
        assert seen == [(1, False), (1, False)]
        assert torch.get_num_threads() == 2
        assert torch.is_grad_enabled()
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_raised_in_the_caller() -> None:
    def fail(share: Share) -> None:
        raise ValueError(f"experts {share.first} to {share.last}")

    with pytest.raises(ValueError, match="experts 0 to 1"):
        run_shares(fail, shares([1, 1], 2))


def test_the_same_threads_serve_every_call() -> None:
    def who(share: Share) -> str:
        return threading.current_thread().name

    names = {name for _ in range(5) for name in run_shares(who, shares([1, 1], 2))}
    assert len(names) <= 2
    assert all(name.startswith("moekit-experts") for name in names)


def test_a_forked_process_gets_a_pool_of_its_own() -> None:
    run_shares(lambda share: share.first, shares([1, 1], 2))
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=lambda: answers.put(run_shares(lambda share: share.first, shares([1, 1], 2))))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    assert answers.get() == [0, 1]


def test_experts_are_split_nearest_to_even() -> None:
    assert shares([3, 2, 2, 2], 2) == [Share(0, 2, 0), Share(2, 4, 5)]
    assert shares([9, 10, 10, 10, 1], 2) == [Share(0, 2, 0), Share(2, 5, 19)]


def test_the_pool_works_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "PARALLEL_FROM", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    dims = LayerDims(dim=4, num_experts=4)
    experts, x_TD = GluExperts(Glu(count=4, hidden=3), dims), torch.randn(8, 4)
    expert_TK = torch.arange(8)[:, None] % 4
    zeros_TE = torch.zeros(8, 4)
    routing = TokenChoice(logits_TE=zeros_TE, scores_TE=zeros_TE, expert_TK=expert_TK, gate_TK=torch.rand(8, 1))
    usual = FusedDispatcher(Fused(), dims)(x_TD, routing, experts).y_TO
    with torch.inference_mode():
        torch.testing.assert_close(FusedDispatcher(Fused(), dims)(x_TD, routing, experts).y_TO, usual)
