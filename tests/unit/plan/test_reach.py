"""Expected ranks of a token's experts, against every possible choice written out."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from moekit_plan.reach import ranks_of, ranks_reached, ranks_reached_by_level
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.topk import TopK


def mean_reached(choices: list[tuple[int, ...]], held: int) -> float:
    return sum(len({e // held for e in chosen}) for chosen in choices) / len(choices)


@pytest.mark.parametrize(("E", "ranks", "K"), [(8, 1, 3), (8, 2, 1), (8, 4, 3), (8, 8, 5), (12, 3, 12), (6, 6, 6)])
def test_free_choice_is_the_mean_of_all_choices(E: int, ranks: int, K: int) -> None:
    every = list(combinations(range(E), K))
    assert ranks_reached(E, ranks, K) == pytest.approx(mean_reached(every, E // ranks), rel=1e-12)
    assert ranks_of(NoisyTopK(top_k=max(K, 2)), E, ranks) == ranks_reached(E, ranks, max(K, 2))


@pytest.mark.parametrize(
    ("E", "ranks", "groups", "top", "K"),
    [(8, 8, 4, 2, 3), (8, 2, 4, 2, 3), (8, 4, 4, 2, 4), (12, 3, 4, 2, 3), (12, 6, 4, 3, 4), (12, 4, 3, 1, 2)],
)
def test_choice_in_a_few_groups_is_the_mean_of_all_choices(E: int, ranks: int, groups: int, top: int, K: int) -> None:
    """Ranks that hold part of a group, whole groups, and parts of several."""
    size = E // groups
    every = [
        chosen
        for open_to in combinations(range(groups), top)
        for chosen in combinations([e for g in open_to for e in range(g * size, (g + 1) * size)], K)
    ]
    expected = mean_reached(every, E // ranks)
    assert ranks_reached(E, ranks, K, groups=groups, top_groups=top) == pytest.approx(expected, rel=1e-12)
    assert ranks_of(TopK(top_k=K, groups=groups, top_groups=top), E, ranks) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("E", "ranks", "groups", "top", "K"), [(12, 12, 4, 2, 2), (12, 3, 4, 2, 2), (12, 2, 3, 2, 3)])
def test_choice_at_two_levels_is_the_mean_of_all_choices(E: int, ranks: int, groups: int, top: int, K: int) -> None:
    size = E // groups
    every = [
        tuple(e for part in parts for e in part)
        for open_to in combinations(range(groups), top)
        for parts in product(*(combinations(range(g * size, (g + 1) * size), K) for g in open_to))
    ]
    expected = mean_reached(every, E // ranks)
    found = ranks_reached_by_level(E, ranks, groups=groups, top_groups=top, per_group=K)
    assert found == pytest.approx(expected, rel=1e-12)
    assert ranks_of(Hierarchical(branches=groups, top_groups=top, top_k=K), E, ranks) == found


def test_limits_of_the_expected_number_of_ranks() -> None:
    """One rank holds everything; a limit of groups is a limit of ranks; a fractional number of choices interpolates."""
    assert ranks_reached(256, 1, 8) == 1
    free, limited = ranks_reached(256, 8, 8), ranks_reached(256, 8, 8, groups=8, top_groups=4)
    assert limited < 4 < free < 8
    assert ranks_reached(256, 8, 1.5) == pytest.approx((1 + ranks_reached(256, 8, 2)) / 2)
    low, high = (ranks_reached(256, 8, k, groups=8, top_groups=2) for k in (3, 4))
    assert ranks_reached(256, 8, 3.25, groups=8, top_groups=2) == pytest.approx(0.75 * low + 0.25 * high)
    assert low < high < 2
    assert ranks_of(TopK(top_k=8), 256, 8) == free
