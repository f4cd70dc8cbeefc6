"""The expected number of ranks that hold a token's experts, when every choice is equally likely. Torch-free.

The ranks hold the experts in order and in equal parts. A token reaches fewer ranks than experts: some of its experts
share a rank, and a router may limit a token to a few groups of experts (DeepSeek-V2, section 2.2.2, arXiv 2405.04434;
DeepSeek-V3, section 2.1.2, arXiv 2412.19437).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import comb, floor

from moekit.spec.kinds import RouterSpec

Missed = Callable[[tuple[int, ...]], Fraction]
"""The probability that a token reaches no expert of a rank, given how many experts of each group the rank holds."""


def ranks_of(router: RouterSpec, num_experts: int, ranks: int) -> float:
    """The expected number of ranks that hold one of a token's experts under a router, its own rank among them."""
    groups, top_groups, per_group = router.group_limit()
    if per_group:
        return ranks_reached_by_level(num_experts, ranks, groups=groups, top_groups=top_groups, per_group=per_group)
    choices = min(router.active(num_experts), num_experts)
    return ranks_reached(num_experts, ranks, choices, groups=groups, top_groups=top_groups)


def ranks_reached(num_experts: int, ranks: int, choices: float, *, groups: int = 1, top_groups: int = 1) -> float:
    """The expected number of ranks that hold one of a token's experts, its own rank among them.

    A token chooses ``top_groups`` of the groups, then ``choices`` different experts in them. With one group the result
    is ``ranks · (1 - C(E - E/ranks, K) / C(E, K))``.

    Args:
        num_experts: E.
        ranks: a divisor of E.
        choices: K; for a fraction, the results for the two nearest integers are interpolated.
        groups: number of equal groups of experts, in order; a divisor of E.
        top_groups: number of groups that a token may choose from.
    """
    size, low = num_experts // groups, floor(choices)
    if (part := choices - low) > 0:
        few, many = (ranks_reached(num_experts, ranks, k, groups=groups, top_groups=top_groups) for k in (low, low + 1))
        return few + part * (many - few)
    open_to = top_groups * size

    def missed(overlaps: tuple[int, ...]) -> Fraction:
        sums = _sums(overlaps, top_groups)
        ways = sum(count * comb(open_to - held, low) for held, count in sums.items())
        return Fraction(ways, comb(groups, top_groups) * comb(open_to, low))

    return _expected(num_experts, ranks, size, missed)


def ranks_reached_by_level(num_experts: int, ranks: int, *, groups: int, top_groups: int, per_group: int) -> float:
    """The same where a token chooses ``top_groups`` groups, and ``per_group`` experts in each of them."""
    size = num_experts // groups

    def missed(overlaps: tuple[int, ...]) -> Fraction:
        ways = [1] + [0] * top_groups  # ways[m]: to choose m groups, and none of this rank's experts in them
        for held in overlaps:
            free = comb(size - held, per_group)
            ways = [1, *(ways[m] + ways[m - 1] * free for m in range(1, top_groups + 1))]
        return Fraction(ways[top_groups], comb(groups, top_groups) * comb(size, per_group) ** top_groups)

    return _expected(num_experts, ranks, size, missed)


def _expected(num_experts: int, ranks: int, size: int, missed: Missed) -> float:
    """The sum over ranks of 1 - P(rank is missed), which depends on how many experts of each group the rank holds."""
    held = num_experts // ranks
    kinds: Counter[tuple[int, ...]] = Counter()
    for rank in range(ranks):
        first, last = rank * held, (rank + 1) * held
        shares = [min(last, g + size) - max(first, g) for g in range(0, num_experts, size)]
        kinds[tuple(sorted(max(share, 0) for share in shares))] += 1
    return float(sum(count * (1 - missed(shares)) for shares, count in kinds.items()))


def _sums(numbers: Sequence[int], chosen: int) -> Counter[int]:
    """How many ways there are to choose ``chosen`` of the numbers with each sum."""
    ways: list[Counter[int]] = [Counter({0: 1}), *(Counter[int]() for _ in range(chosen))]
    for number in numbers:
        for m in range(chosen, 0, -1):
            for total, count in ways[m - 1].items():
                ways[m][total + number] += count
    return ways[chosen]
