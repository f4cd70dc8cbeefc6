"""Shazeer et al. 2017 at the sizes of the paper: every published count comes out, to its last digit."""

from __future__ import annotations

import pytest

from moekit.cli.params import rounded_like
from moekit.params import count_parameters
from moekit.spec import load

BILLION_WORDS = 793_471

ROWS = {
    "4": ("8.4M", "0.8B"),
    "32": ("37.8M", "0.9B"),
    "256": ("272.9M", "1.1B"),
    "256h": ("272.9M", "1.1B"),
    "1024h": ("1079.0M", "1.9B"),
    "4096h": ("4303.4M", "5.1B"),
    "34m": ("4313.9M", "5.9B"),  # the paper prints 6.0: with its vocabulary the sum is 5.94
    "143m": ("4371.1M", "6.0B"),
    "65536h": ("68791.0M", "68.9B"),
}
"""Tables 7 and 8: parameters without embedding and softmax, and with them."""

SIZES = {
    "4": (512, 512, 4, 1024, 0),
    "32": (512, 512, 32, 1024, 0),
    "256": (512, 512, 256, 1024, 0),
    "256h": (512, 512, 256, 1024, 16),
    "1024h": (512, 512, 1024, 1024, 16),
    "4096h": (512, 512, 4096, 1024, 16),
    "34m": (1024, 1024, 1024, 2048, 16),
    "143m": (1024, 4096, 256, 8192, 16),
    "65536h": (512, 512, 65536, 1024, 256),
}
"""D, cells of an LSTM, experts, their hidden width, and branches of the first level (0: there is one level)."""

DIGITS = {"32": 37.786, "256": 272.896, "256h": 272.912, "1024h": 1079.005, "4096h": 4303.376}
"""Millions, from a script of their own."""


def by_hand(D: int, cells: int, experts: int, hidden: int, branches: int) -> int:
    """Two LSTMs with one bias a gate (and a projection), experts of two matrices, W_g and W_noise at each level."""
    projection = cells * D if cells > D else 0
    lstms = 2 * (4 * (D + D) * cells + 4 * cells + projection)
    return lstms + experts * 2 * D * hidden + 2 * D * (experts + branches)


@pytest.mark.parametrize("name", ROWS)
def test_the_count_is_what_was_published(name: str) -> None:
    recipe = load(f"shazeer2017-{name}")
    count = count_parameters(recipe)
    bare, whole = ROWS[name]
    assert count.without_embeddings == by_hand(*SIZES[name])
    assert rounded_like(count.without_embeddings, bare) == bare
    assert rounded_like(count.total, whole) == whole
    assert recipe.paper is not None
    assert (recipe.paper.total, recipe.paper.total_reading) == (bare, "without_either")
    assert recipe.paper.claim.startswith("perplexity ")
    if name in DIGITS:
        assert count.without_embeddings / 1e6 == pytest.approx(DIGITS[name], abs=6e-4)


@pytest.mark.parametrize("name", ROWS)
def test_four_experts_run_for_each_word(name: str) -> None:
    model = load(f"shazeer2017-{name}").model
    D, _, experts, hidden, _ = SIZES[name]
    count = count_parameters(model)
    assert count.parts["routed experts"] == experts * 2 * D * hidden
    assert count.active_parts["routed experts"] == 4 * 2 * D * hidden
    assert count.parts["embedding"] == count.parts["head"] == D * (100_000 if name == "65536h" else BILLION_WORDS)


def test_the_dense_twin_is_the_papers_own() -> None:
    """MoE-1-Wide: one expert with a hidden layer of 4096 units, 8.4M parameters."""
    twin = load("shazeer2017-32").model.dense_baseline()
    assert twin is not None
    count = count_parameters(twin)
    assert count.parts["dense ffn"] == 2 * 512 * 4096
    assert rounded_like(count.without_embeddings, "8.4M") == "8.4M"
