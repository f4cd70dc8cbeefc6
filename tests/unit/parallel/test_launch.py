"""Broadcasts from rank 0 before there is a process group. Real processes: ``tests/e2e/test_sharded_cli``."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from ranks import free_port

from moekit.errors import CheckpointError, MoekitError
from moekit.parallel import launch


@pytest.fixture(autouse=True)
def closed_stores() -> Iterator[None]:
    """A process keeps its stores until it ends; this one ends after other tests."""
    yield
    launch._store.cache_clear()


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Future[str], Future[str]]]:
    """Runs ``_from_store`` on two ranks, each a thread, that share a store; returns both results."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(launch, "RANK_ZERO_TIMEOUT", timedelta(seconds=20))
    port = free_port()

    def rank(number: int, choose: Callable[[], str], timeout: timedelta, times: int) -> str:
        made = [launch._from_store(cluster(number, port), "MOEKIT_CHOICE", choose, timeout) for _ in range(times)]
        return " ".join(made)

    def both(choose: Callable[[], str], timeout: float = 20, times: int = 1) -> tuple[Future[str], Future[str]]:
        with ThreadPoolExecutor(2) as threads:
            zero, other = (threads.submit(rank, i, choose, timedelta(seconds=timeout), times) for i in range(2))
        return zero, other

    return both


def cluster(rank: int, port: int) -> ClusterEnvironment:
    numbers = {"global_rank": lambda: rank, "world_size": lambda: 2}
    return cast(ClusterEnvironment, SimpleNamespace(main_address="127.0.0.1", main_port=port, **numbers))


def test_rank_0_chooses_for_all_ranks(decide: Callable[..., tuple[Future[str], Future[str]]]) -> None:
    choices = iter(["one", "two"])
    zero, other = decide(lambda: next(choices))
    assert (zero.result(), other.result()) == ("one", "one")


def test_each_choice_of_many_in_a_row_reaches_all_ranks(decide: Callable[..., tuple[Future[str], Future[str]]]) -> None:
    """Rank 0 once ended its store after each choice: another rank could connect to it for the next, and crash."""
    choices = map(str, range(300))
    zero, other = decide(lambda: next(choices), times=300)
    assert zero.result() == other.result() == " ".join(map(str, range(300)))


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


def test_rank_0_raises_its_own_error_though_no_rank_receives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "RANK_ZERO_TIMEOUT", timedelta(seconds=0.1))

    def fail() -> str:
        raise CheckpointError("tensors are damaged")

    alone = cluster(0, free_port())
    with pytest.raises(CheckpointError, match=r"^tensors are damaged$"):
        launch._from_store(alone, "MOEKIT_CHOICE", fail, timedelta(seconds=20))
    with pytest.raises(MoekitError, match=r"^rank 1 of this run has crashed, or did not answer within 0:00:00\.1"):
        launch._from_store(alone, "MOEKIT_CHOICE", lambda: "one", timedelta(seconds=20))


def test_a_port_in_use_names_the_variable_that_changes_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(MoekitError, match=rf"cannot listen at 127\.0\.0\.1, port {port}: (?s:.*)set MASTER_PORT"):
            launch._from_store(cluster(0, port), "MOEKIT_CHOICE", lambda: "one", timedelta(seconds=20))


def test_a_rank_that_runs_something_else_than_rank_0_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the ranks would wait for each other in different places, or train different models."""
    monkeypatch.setenv("MOEKIT_RUN", "moekit 0.1.0, recipe 1234")
    monkeypatch.setattr(launch.rank_zero_only, "rank", 3, raising=False)
    launch.check_same_run("moekit 0.1.0, recipe 1234")
    with pytest.raises(MoekitError, match=r"^rank 3 of this run differs from rank 0") as caught:
        launch.check_same_run("moekit 0.2.0, recipe 1234")
    assert "rank 0 has moekit 0.1.0, recipe 1234\n  rank 3 has moekit 0.2.0, recipe 1234" in str(caught.value)
