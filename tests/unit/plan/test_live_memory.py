"""Bytes alive at once: an exact sum. Peaks of models: ``test_activations``."""

from __future__ import annotations

import torch

from moekit_plan.live_memory import LiveBytes


def test_living_storages_count_but_not_copies_of_banks_in_another_dtype() -> None:
    """Nor what the caller skips. The peak remembers what was freed."""
    x, bank = torch.ones(3, 4), torch.ones(2, 5)
    with LiveBytes([x, bank], [bank]) as live:
        copy, narrow, view = bank.bfloat16(), x.bfloat16(), x[1:]
        assert live.now == narrow.nbytes == 24 and list(live.copies.values()) == [copy.nbytes]
        live.skips = lambda tensor: tensor.ndim == 1
        skipped, double = torch.ones(100), x.double()
        assert live.now == 24 + 96
        del copy, double
        assert (live.now, live.peak, live.copies) == (24, 120, {})
    assert view.numel() == 8 and skipped.numel() == 100
