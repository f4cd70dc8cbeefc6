"""The word of the first process, as the others hear it; real processes: ``tests/e2e/test_sharded_cli``."""

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
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Future[str], Future[str]]]:
    """Asks two ranks, each a thread, that meet at a store of their own; what comes of each."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int, choose: Callable[[], str], timeout: timedelta) -> str:
        numbers = {"global_rank": lambda: number, "world_size": lambda: 2}
        cluster = cast(Any, SimpleNamespace(main_address="127.0.0.1", main_port=port, **numbers))
        return launch._from_store(cluster, "MOEKIT_WORD", choose, timeout)

    def both(choose: Callable[[], str], timeout: float = 20) -> tuple[Future[str], Future[str]]:
        with ThreadPoolExecutor(2) as threads:
            first, other = (threads.submit(rank, i, choose, timedelta(seconds=timeout)) for i in range(2))
        return first, other

    return both


def test_the_first_chooses_for_all(ask: Callable[..., tuple[Future[str], Future[str]]]) -> None:
    words = iter(["one", "two"])
    first, other = ask(lambda: next(words))
    assert (first.result(), other.result()) == ("one", "one")


def test_when_the_first_refuses_the_others_end_too(ask: Callable[..., tuple[Future[str], Future[str]]]) -> None:
    def refuse() -> str:
        raise CheckpointError("tensors are damaged\n  whole ones beside it: none")

    first, other = ask(refuse)
    with pytest.raises(CheckpointError, match=r"^tensors are damaged\n  whole ones"):
        first.result()
    with pytest.raises(MoekitError, match=r"^the first process of this run has ended: tensors are damaged$"):
        other.result()


def test_one_that_hears_nothing_says_so(ask: Callable[..., tuple[Future[str], Future[str]]]) -> None:
    """As when the first is killed: here it ends with what is no user's mistake, and so without a word."""

    def crash() -> str:
        raise ZeroDivisionError

    first, other = ask(crash, timeout=0.1)
    with pytest.raises(ZeroDivisionError):
        first.result()
    with pytest.raises(MoekitError, match=r"the first process of this run is gone, or said nothing for 0:00:00\.1"):
        other.result()
