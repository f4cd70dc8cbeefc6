"""A check never uses the network: connections are refused, noted, and fail the check even where they are caught."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from moekit.component import Component
from moekit.routing import Routing
from moekit_routers import TopK
from moekit_testing.assertions import CheckFailure
from moekit_testing.case import DIMS, Case
from moekit_testing.fixtures.network import NetworkRefused, is_this_machine, no_network
from moekit_testing.running import BoundCheck

ELSEWHERE = "203.0.113.1"  # an address of documentation, which no machine has


def test_another_machine_is_refused_and_this_one_is_not() -> None:
    before = socket.socket.connect, socket.getaddrinfo
    with no_network() as wanted, socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5):
            pass
        with socket.socket() as one, pytest.raises(NetworkRefused, match=ELSEWHERE):
            one.connect((ELSEWHERE, 80))
        with pytest.raises(NetworkRefused, match=r"example\.org"):
            socket.getaddrinfo("example.org", 443)
        assert os.environ["WANDB_MODE"] == "offline"
    assert wanted == [ELSEWHERE, "example.org"]
    assert (socket.socket.connect, socket.getaddrinfo) == before


@pytest.mark.parametrize(("host", "own"), [("::1", True), ("127.0.0.2", True), ("0.0.0.0", True), (b"localhost", True)])
def test_names_and_addresses_of_this_machine(host: object, own: bool) -> None:
    assert is_this_machine(host) is own
    assert not is_this_machine("10.0.0.1") and not is_this_machine("api.example.org")


@pytest.mark.parametrize("caught", [True, False])
def test_a_check_that_connects_fails_even_if_the_exception_is_caught_in_a_thread(caught: bool) -> None:
    def check_connects(case: Case) -> None:
        """Does something."""

        def connect() -> None:
            try:
                socket.create_connection((ELSEWHERE, 80), timeout=0.1)
            except OSError:
                if not caught:
                    raise

        thread = threading.Thread(target=connect)
        if caught:
            thread.start()
            thread.join()
        else:
            connect()

    component = Component(kind="router", name="r", spec=TopK, target=Routing, summary="")
    with pytest.raises(CheckFailure, match=ELSEWHERE):
        BoundCheck(check_connects, Case(component=component, spec=TopK(top_k=1), dims=DIMS, label="router/r"))()
