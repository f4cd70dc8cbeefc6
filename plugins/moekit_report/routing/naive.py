"""The statistics of routing in loops over saved decisions, one token at a time. Plain rather than fast."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a layer decided for one token.

    Attributes:
        scores: affinity of each expert, without bias.
        logits: the router's outputs.
        shares: affinities divided by their sum.
        chosen: experts with their gates, without those that are not sent; for padding none.
        options: how many experts the token chose, sent or not; 0 where experts choose.
        valid: False for padding.
        bias: the selection bias of each expert.
        domain, token_class: labels; -1 for none.
    """

    scores: Sequence[float]
    logits: Sequence[float]
    shares: Sequence[float]
    chosen: Mapping[int, float]
    options: int
    valid: bool = True
    bias: Sequence[float] = ()
    domain: int = -1
    token_class: int = -1


@dataclass
class Recount:
    """Statistics of a layer: ``load``, ``importance`` by expert; counts and means by name; loads by label; pairs."""

    load: list[int]
    importance: list[float]
    counts: Counter[str] = field(default_factory=Counter)
    means: dict[str, float] = field(default_factory=dict)
    domains: Counter[tuple[int, int]] = field(default_factory=Counter)
    classes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)


def recount(decisions: Sequence[Decision]) -> Recount:
    """Counts the decisions of a layer again."""
    E = len(decisions[0].scores)
    found = Recount(load=[0] * E, importance=[0.0] * E)
    values: dict[str, list[float]] = {"entropy": [], "first_gate": [], "margin": [], "logit_norm": []}
    for each in decisions:
        if not each.valid:
            found.counts["padded_tokens"] += 1
            found.counts["padded_pairs"] += each.options
            continue
        found.counts["tokens"] += 1
        found.counts["pairs"] += len(each.chosen)
        if each.options:
            found.counts["unsent_pairs"] += each.options - len(each.chosen)
        if not each.chosen:
            found.counts["unsent_tokens"] += 1
        values["entropy"].append(-sum(p * math.log2(p) for p in each.shares if p > 0))
        values["logit_norm"].append(math.sqrt(sum(x * x for x in each.logits)))
        gates = sum(each.chosen.values())
        if gates > 0:
            values["first_gate"].append(max(each.chosen.values()) / gates)
        if each.options and 0 < len(each.chosen) < E:
            bias = each.bias or [0.0] * E
            score = [s + b for s, b in zip(each.scores, bias, strict=True)]
            others = [score[e] for e in range(E) if e not in each.chosen]
            values["margin"].append(min(score[e] for e in each.chosen) - max(others))
        for expert, gate in each.chosen.items():
            found.load[expert] += 1
            found.importance[expert] += gate
            if each.domain >= 0:
                found.domains[each.domain, expert] += 1
            if each.token_class >= 0:
                found.classes[each.token_class, expert] += 1
            for other in each.chosen:
                if expert < other:
                    found.pairs[expert, other] += 1
    found.means = {name: sum(some) / len(some) if some else math.nan for name, some in values.items()}
    return found


def first_choice(decision: Decision) -> int:
    """The expert with the highest gate, of equal ones the lowest; -1 without one."""
    best = -1
    for expert in sorted(decision.chosen):
        if best < 0 or decision.chosen[expert] > decision.chosen[best]:
            best = expert
    return best


def dropped(decisions: Sequence[Decision], slots: int) -> tuple[int, int]:
    """The pairs that find no slot at their expert, token by token; and the tokens that lose all their experts so."""
    taken: Counter[int] = Counter()
    pairs = tokens = 0
    for each in decisions:
        lost = 0
        for expert in each.chosen:
            if taken[expert] == slots:
                lost += 1
            else:
                taken[expert] += 1
        pairs += lost
        tokens += bool(lost) and lost == len(each.chosen)
    return pairs, tokens


def max_violation(load: Sequence[int]) -> float:
    """How far the highest load exceeds the mean, divided by the mean; 0 without any load."""
    mean = sum(load) / len(load)
    return (max(load) - mean) / mean if mean else 0.0


def percentile(load: Sequence[int], of: float) -> float:
    """A percentile of the load over experts, as a multiple of the mean, between the two nearest linearly."""
    ordered, at = sorted(load), of / 100 * (len(load) - 1)
    low = ordered[math.floor(at)]
    return (low + (ordered[math.ceil(at)] - low) * (at - math.floor(at))) * len(load) / sum(load)


def changed(before: Sequence[Decision], after: Sequence[Decision]) -> float:
    """The share of tokens whose first choice differs, of those that have one both times; NaN without any."""
    both = [(first_choice(a), first_choice(b)) for a, b in zip(before, after, strict=True)]
    both = [(a, b) for a, b in both if a >= 0 and b >= 0]
    return sum(a != b for a, b in both) / len(both) if both else math.nan
