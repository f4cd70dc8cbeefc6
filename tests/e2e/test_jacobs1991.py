"""The claims of 1991, on 25 seeds a system, each at its best learning rate (``benchmarks/jacobs1991.py``)."""

from __future__ import annotations

from functools import cache

import pytest
from jacobs1991 import SYSTEMS, Outcome, train


@cache
def outcome(name: str) -> Outcome:
    """Trains a system once for all tests of this file."""
    return train(SYSTEMS[name])


pytestmark = pytest.mark.slow
of_each_size = pytest.mark.parametrize("experts", [4, 8])


@of_each_size
def test_mixtures_converge_on_every_seed_in_fewer_epochs_than_the_better_net(experts: int) -> None:
    ours = outcome(f"{experts} experts, likelihood")
    assert ours.epochs.isfinite().all(), "a seed did not reach the criterion"
    nets = [outcome("backprop, 6 hidden"), outcome("backprop, 12 hidden")]
    assert all(n.epochs.isfinite().all() for n in nets), (
        "the nets converge at their best rate, so the comparison is fair"
    )
    assert float(ours.epochs.mean()) < 0.75 * min(float(n.epochs.mean()) for n in nets)
    assert float(ours.test.mean()) >= 0.90
    assert float(ours.test.mean()) >= max(float(n.test.mean()) for n in nets) - 0.01


@of_each_size
def test_two_or_three_experts_stay_active_on_every_seed(experts: int) -> None:
    active = outcome(f"{experts} experts, likelihood").active
    assert ((active >= 2) & (active <= 3)).all()


def test_competition_leaves_fewer_of_eight_experts_active_than_cooperation() -> None:
    competing, cooperating = outcome("8 experts, likelihood"), outcome("8 experts, cooperative")
    assert cooperating.epochs.isfinite().all()
    assert float(competing.active.mean()) < float(cooperating.active.mean()) - 2
