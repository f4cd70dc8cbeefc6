"""Seeds derived from what they are used for, and seeding of generators."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.seeds import random_seed, seed_all, seed_of, seed_torch


@given(st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=9), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_a_derived_seed_is_valid_for_a_generator(parts: list[int | str]) -> None:
    assert 0 <= seed_of(*parts) < 2**63
    torch.Generator().manual_seed(seed_of(*parts))


def test_different_parts_give_different_seeds() -> None:
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of(0) == 3456079177858693020  # the same on every machine
    assert seed_of(0, "batch", 1) != seed_of(0, "noise", 1)


def test_random_seeds_follow_torchs_generator_also_on_the_meta_device() -> None:
    torch.manual_seed(3)
    first = random_seed()
    with torch.device("meta"):
        second = random_seed()
    torch.manual_seed(3)
    assert [random_seed(), random_seed()] == [first, second]
    assert first != second


def test_one_seed_sets_every_generator() -> None:
    def numbers() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.gauss(0, 1)

    seed_all(2**40 + 5)
    first = numbers()
    assert numbers() != first
    seed_all(2**40 + 5)
    assert numbers() == first


def test_seeding_the_cpu_equals_torch_manual_seed() -> None:
    torch.manual_seed(2**62 + 5)
    expected = torch.rand(3)
    seed_torch(2**62 + 5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("available", [False, True])
def test_an_available_device_is_seeded_too(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    seed_torch(3)
    assert seeded == [3] * available
