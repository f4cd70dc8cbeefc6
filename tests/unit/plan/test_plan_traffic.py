"""Bytes and messages of rows, by hand. ``expert_parallel_run`` compares them with what several processes send."""

from __future__ import annotations

from moekit_plan.traffic import traffic


def test_the_bytes_and_messages_of_ten_rows() -> None:
    """Of 8 elements of 2 bytes, 6 in the output, with 3 gates and 3 indices; and 16 bytes to each of 3 other ranks."""
    found = traffic(10, size=4, choices=3, dim=8, out_dim=6, element_bytes=2)
    assert found.forward == 10 * (8 * 2 + 3 * 4 + 3 * 4 + 6 * 2) + 3 * 16
    assert found.backward == 10 * (8 * 2 + 3 * 4 + 6 * 2)
    assert (found.forward_messages, found.backward_messages) == (15, 9)
    twice = found + found
    assert (twice.rows, twice.forward, twice.backward) == (20, 2 * found.forward, 2 * found.backward)
    assert (twice.forward_messages, twice.backward_messages) == (30, 18)
