"""Broadcasts from rank 0 before there is a process group. Real processes: ``tests/e2e/test_sharded_cli``."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from moekit.errors import CheckpointError, MoekitError
from moekit.parallel import launch


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Future[str], Future[str]]]:
    """Runs ``_from_store`` on two ranks, each a thread, that share a store; returns both results."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int, choose: Callable[[], str], timeout: timedelta) -> str:
        numbers = {"global_rank": lambda: number, "world_size": lambda: 2}
        cluster = cast(Any, SimpleNamespace(main_address="127.0.0.1", main_port=port, **numbers))
        return launch._from_store(cluster, "MOEKIT_CHOICE", choose, timeout)

    def both(choose: Callable[[], str], timeout: float = 20) -> tuple[Future[str], Future[str]]:
        with ThreadPoolExecutor(2) as threads:
            zero, other = (threads.submit(rank, i, choose, timedelta(seconds=timeout)) for i in range(2))
        return zero, other

    return both


def test_rank_0_chooses_for_all_ranks(decide: Callable[..., tuple[Future[str], Future[str]]]) -> None:
    choices = iter(["one", "two"])
    zero, other = decide(lambda: next(choices))
    assert (zero.result(), other.result()) == ("one", "one")


def test_an_error_on_rank_0_ends_the_other_ranks(decide: Callable[..., tuple[Future[str], Future[str]]]) -> None:
    def fail() -> str:
        raise CheckpointError("tensors are damaged\n  no other checkpoint")

    zero, other = decide(fail)
    with pytest.raises(CheckpointError, match=r"^tensors are damaged\n  no other"):
        zero.result()
    with pytest.raises(MoekitError, match=r"^rank 0 of this run has ended: tensors are damaged$"):
        other.result()


def test_a_rank_that_receives_nothing_raises_after_the_timeout(
    decide: Callable[..., tuple[Future[str], Future[str]]],
) -> None:
    """As if rank 0 was killed: it ends with an error that it does not send."""

    def crash() -> str:
        raise ZeroDivisionError("crash")

    zero, other = decide(crash, timeout=0.1)
    with pytest.raises(ZeroDivisionError, match="crash"):
        zero.result()
    with pytest.raises(MoekitError, match=r"rank 0 of this run has crashed, or did not answer within 0:00:00\.1"):
        other.result()


def test_a_rank_that_runs_something_else_than_rank_0_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the ranks would wait for each other in different places, or train different models."""
    monkeypatch.setenv("MOEKIT_RUN", "moekit 0.1.0, recipe 1234")
    monkeypatch.setattr(launch.rank_zero_only, "rank", 3, raising=False)
    launch.check_same_run("moekit 0.1.0, recipe 1234")
    with pytest.raises(MoekitError, match=r"^rank 3 of this run differs from rank 0") as caught:
        launch.check_same_run("moekit 0.2.0, recipe 1234")
    assert "rank 0 has moekit 0.1.0, recipe 1234\n  rank 3 has moekit 0.2.0, recipe 1234" in str(caught.value)
