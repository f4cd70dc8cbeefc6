"""The capacity dispatcher: the papers' worked examples, and cases that other libraries get wrong."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from routings import token_choice
from torch import Tensor

from moekit.contracts import ExpertBank, LayerDims
from moekit.moe_layer import MoELayer
from moekit.routing import TokenChoice
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import MoE
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.capacity.module import CapacityDispatcher
from moekit_dispatchers.capacity.naive import naive_slots
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_dispatchers.queues import as_fraction
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_routers.topk import TopK
from moekit_testing.fixtures.reference import OneHotExperts

D = 4


def dispatcher(spec: Capacity, E: int) -> CapacityDispatcher:
    return CapacityDispatcher(spec, LayerDims(dim=D, num_experts=E))


def routing(chosen: list[list[int]], E: int, gates: list[list[float]] | None = None) -> TokenChoice:
    """Affinities are the gates; 1 / (1 + k) for choice k where none are given."""
    gates = gates or [[1 / (1 + k) for k in range(len(chosen[0]))]] * len(chosen)
    return token_choice(torch.zeros(len(chosen), E).scatter(1, torch.tensor(chosen), torch.tensor(gates)), chosen)


def kept(spec: Capacity, routed: TokenChoice, B: int = 1) -> list[list[float]]:
    """The weight of each expert in each token's output; missing pairs must be counted as dropped."""
    E, T = routed.num_experts, routed.expert_TK.shape[0]
    out = dispatcher(spec, E)(torch.randn(T, D), routed, OneHotExperts(E).float(), num_sequences=B)
    assert int((out.y_TO != 0).sum() + out.dropped) == int(routed.load_E().sum())
    weights: list[list[float]] = out.y_TO.tolist()
    return weights


# ---- the papers' numbers --------------------------------------------------------------------------------------------


def test_four_tokens_of_gshard_fill_four_slots_and_overflow_two() -> None:
    """GShard 3 (a): all prefer expert 0, then 1. C = 2·4/2 = 4 drops nothing; C = 2 leaves tokens 2, 3 exactly 0."""
    routed = routing([[0, 1]] * 4, 2)
    assert kept(Capacity(factor=1.0, order="choice"), routed) == [[1, 0.5]] * 4
    assert kept(Capacity(factor=0.5, order="choice"), routed) == [[1, 0.5]] * 2 + [[0, 0]] * 2


def test_a_second_choice_keeps_its_gate_when_the_first_is_dropped() -> None:
    """GShard 3 (a): renormalisation precedes dropping."""
    routed = routing([[0, 1], [0, 2]], 3, [[0.6, 0.4], [0.7, 0.3]])
    found = kept(Capacity(factor=0.5, order="choice", rounding="floor"), routed)
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[0.6, 0.4, 0], [0, 0, 0.3]]))


def test_first_choices_get_slots_before_second_ones() -> None:
    """GShard 3 (b): token 3's first choice takes the last slot before token 0's second; by position it is not so."""
    routed = routing([[1, 0], [0, 1], [2, 3], [0, 1]], 4)
    by_choice, by_position = (kept(Capacity(factor=1.0, order=order), routed) for order in ("choice", "position"))
    assert [row[0] for row in by_choice] == [0, 1, 0, 1]
    assert [row[0] for row in by_position] == [0.5, 1, 0, 0]


def test_permuting_groups_changes_nothing_and_within_a_group_only_when_capacity_binds() -> None:
    """GShard 3 (f)."""
    experts = torch.tensor([[0, 1], [0, 2], [1, 0], [3, 1], [2, 3], [2, 3], [2, 1], [0, 3]])
    groups = Capacity(factor=0.5, order="choice", group_size=4)

    def weights(order: list[int], spec: Capacity) -> Tensor:
        found = torch.tensor(kept(spec, routing(experts[order].tolist(), 4)))
        return found[torch.tensor(order).argsort()]

    same, swapped, within = list(range(8)), [4, 5, 6, 7, 0, 1, 2, 3], [3, 2, 1, 0, 7, 6, 5, 4]
    assert torch.equal(weights(same, groups), weights(swapped, groups))
    assert not torch.equal(weights(same, groups), weights(within, groups))
    roomy = Capacity(factor=4.0, order="choice", group_size=4)
    assert torch.equal(weights(same, roomy), weights(within, roomy))


def test_switch_keeps_the_first_two_of_six_tokens() -> None:
    """Switch 4 (c): T = 8, E = 4, cf = 1, C = 2; six tokens to expert 0: four outputs exactly 0."""
    routed = routing([[0], [0], [0], [1], [0], [0], [2], [0]], 4)
    y = kept(Capacity(factor=1.0, count="tokens"), routed)
    assert [sum(row) for row in y] == [1, 1, 0, 1, 0, 0, 1, 0]


def test_a_dropped_token_comes_out_zero_without_gradients() -> None:
    """Switch 4 (d), and transformers #37017, where dropped tokens came out as their scaled input."""
    routed, bank = routing([[0]] * 4, 2), GluExperts(Glu(count=2, hidden=5), LayerDims(dim=D, num_experts=2))
    x_TD = torch.randn(4, D, requires_grad=True)
    y_TD = dispatcher(Capacity(factor=1.0), 2)(x_TD, routed, bank).y_TO
    assert not y_TD[2:].any() and bool(y_TD[:2].any(1).all())
    grads = torch.autograd.grad(y_TD[2:].sum(), [x_TD, *bank.parameters()], retain_graph=True)
    assert not any(g.any() for g in grads)
    assert not torch.autograd.grad(y_TD.sum(), x_TD)[0][2:].any()


@pytest.mark.parametrize("order", ["priority", "affinity"])
def test_priority_keeps_the_highest_affinities_and_permutes_with_the_tokens(order: str) -> None:
    """ST-MoE 6: at capacity factor .5, of four tokens the two of highest p, in any order."""
    p = [0.3, 0.9, 0.5, 0.7]
    for turn in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        routed = routing([[0]] * 4, 1, [[p[t]] for t in turn])
        weights = kept(Capacity(factor=0.5, order=order), routed)
        torch.testing.assert_close(torch.tensor(weights), torch.tensor([[p[t] if p[t] > 0.5 else 0] for t in turn]))


@pytest.mark.parametrize("order", ["priority", "affinity"])
def test_of_equal_affinities_the_earlier_token_keeps_its_slot(order: str) -> None:
    routed = routing([[0]] * 4, 1, [[0.5], [0.7], [0.5], [0.5]])
    assert [row[0] > 0 for row in kept(Capacity(factor=0.5, order=order), routed)] == [True, True, False, False]


def test_priority_ranks_tokens_and_affinity_ranks_pairs() -> None:
    """V-MoE's algorithm: first choices before second ones, tokens by their best. Ranking pairs is another thing."""
    routed = routing([[0, 1], [1, 0], [2, 0]], 3, [[0.3, 0.2], [0.5, 0.4], [0.9, 0.1]])
    one_slot = {"factor": 0.5, "count": "pairs"}
    by_priority, by_affinity = (kept(Capacity(**one_slot, order=order), routed) for order in ("priority", "affinity"))
    assert [row[0] > 0 for row in by_priority] == [True, False, False]  # the only first choice of expert 0
    assert [row[0] > 0 for row in by_affinity] == [False, True, False]  # .4 is the highest


def test_priority_goes_by_the_best_choice_though_a_selection_bias_named_another_first() -> None:
    routed = routing([[0, 1], [0, 1]], 2, [[0.2, 0.3], [0.1, 0.9]])
    weights = kept(Capacity(factor=0.5, order="priority"), routed)
    torch.testing.assert_close(torch.tensor(weights), torch.tensor([[0, 0], [0.1, 0.9]]))


@pytest.mark.parametrize(
    "spec, tokens, slots",
    [
        # How five codes round: E = 8, K = 2.
        (Capacity(factor=1.25, count="tokens", rounding="floor", at_least=4), 20, 4),  # mesh: int(3.125), then 4
        (Capacity(factor=1.25, count="tokens", rounding="floor", multiple=4), 40, 8),  # lingvo: 6, up to 8
        (Capacity(factor=1.25, count="tokens", rounding="floor", multiple=4), 4, 4),  # lingvo: 0 falls back to 4
        (Capacity(factor=1.2, count="tokens", rounding="round"), 50, 8),  # flaxformer: 7.5, half to even
        (Capacity(factor=1.0, count="tokens", rounding="round"), 36, 4),  # 4.5, half to even
        (Capacity(factor=1.05, count="pairs", multiple=4), 40, 12),  # vmoe: ceil(10.5) = 11, up to 12
        (Capacity(factor=1.0, count="tokens"), 33, 5),  # DeepSpeed: ceil(4.125)
        (Capacity(factor=1.1, count="tokens"), 80, 11),  # 1.1 · 10 is 11, not 11.000000000000002
        (Capacity(factor=99.0), 5, 5),  # never more than there are tokens
    ],
)
def test_slots_are_rounded_as_five_libraries_round_them(spec: Capacity, tokens: int, slots: int) -> None:
    assert dispatcher(spec, 8).slots(tokens, 2, 8) == slots


SIZES = [
    (E, K, S) for E in (3, 6, 7, 8, 12, 60, 64, 160, 256) for K in (1, 2, 3, 6, 8) for S in (7, 48, 60, 1000, 4096)
]


@pytest.mark.parametrize("rounding", ["ceil", "floor", "round"])
@pytest.mark.parametrize("order", [0, 1], ids=["one division", "two divisions"])
def test_a_factor_computed_for_a_number_of_slots_gives_exactly_these(rounding: str, order: int) -> None:
    """``C·E / (K·S)`` in floats; the literal decimals of that float would give a slot too many or too few."""
    wrong = []
    for E, K, S in SIZES:
        for C in {1, 2, 3, S // 3, S // 2 + 1, S - 1}:
            factor = C / S * E / K if order else C * E / (K * S)
            found = dispatcher(Capacity(factor=factor, rounding=rounding), E).slots(S, K, E)  # type: ignore[arg-type]
            assert naive_slots(S, K, E, Fraction(C * E, K * S), "pairs", rounding, 1, 1) == C
            wrong += [(E, K, S, C, found)] if found != C else []
    assert not wrong


def test_a_decimal_factor_is_what_is_written() -> None:
    assert as_fraction(1.1) == (11, 10) and as_fraction(1.25) == (5, 4) and as_fraction(0.333) == (333, 1000)
    assert as_fraction(1.234567) == (1234567, 1000000) and as_fraction(1 / 3) == (1, 3) and as_fraction(2.0) == (2, 1)
    assert dispatcher(Capacity(factor=1.1), 8).slots(80, 1, 8) == 11


def test_without_any_size_the_factor_is_the_papers() -> None:
    assert dispatcher(Capacity(), 8).slots(64, 2, 8) == dispatcher(Capacity(factor=1.25), 8).slots(64, 2, 8) == 20


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("slots", "expected"), [(1, 1), (5, 5), (9, 8)])
def test_slots_can_be_given_as_a_number(slots: int, expected: int, training: bool) -> None:
    counted = dispatcher(Capacity(slots=slots), 4).train(training)
    assert counted.slots(8, 2, 4) == expected
    assert f"slots={slots}" in repr(counted) and "factor" not in repr(counted)


def test_one_slot_of_an_expert_keeps_one_pair() -> None:
    assert kept(Capacity(slots=1), routing([[0], [0], [1]], 2)) == [[1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"factor": 1.0}, "factor=1.0"),
        ({"eval_factor": 2.0}, "eval_factor=2.0"),
        ({"rounding": "floor"}, "rounding=floor"),
        ({"multiple": 4}, "multiple=4"),
    ],
)
def test_slots_and_a_way_to_compute_them_are_rejected_together(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ConflictError, match=f"slots=3 is C itself, so {what} has no effect: give one of them"):
        Capacity(slots=3, **given)


def test_evaluation_can_have_another_factor() -> None:
    routed = routing([[0]] * 8, 4)
    switch, same = (dispatcher(Capacity(factor=1.0, eval_factor=f), 4) for f in (2.0, None))
    for part, training, dropped in ((switch, True, 6), (switch, False, 4), (same, False, 6)):
        assert int(part.train(training)(torch.randn(8, D), routed, OneHotExperts(4).float()).dropped) == dropped


# ---- groups ---------------------------------------------------------------------------------------------------------


def test_slots_are_counted_for_each_batch_sequence_or_group() -> None:
    routed = routing([[0]] * 4 + [[1]] * 4, 2)  # two sequences; the first all on one expert, the second on the other
    for spec, per_token in (
        (Capacity(factor=1.0), [1, 1, 1, 1] * 2),
        (Capacity(factor=1.0, per="sequence"), [1, 1, 0, 0] * 2),
        (Capacity(factor=1.0, group_size=4), [1, 1, 0, 0] * 2),
        (Capacity(factor=1.0, per="sequence", group_size=2), [1, 0, 1, 0] * 2),
        (Capacity(factor=1.0, group_size=8), [1, 1, 1, 1] * 2),
    ):
        assert [sum(row) for row in kept(spec, routed, B=2)] == per_token


@pytest.mark.parametrize(
    "spec, B, message",
    [
        (Capacity(group_size=3), 2, r"group_size=3 does not divide a batch of 8 tokens; choose a divisor of 8"),
        (Capacity(per="sequence", group_size=8), 2, r"group_size=8 does not divide a sequence of 4 tokens"),
        (Capacity(per="sequence"), 3, r"8 tokens are not 3 sequences of one length"),
    ],
)
def test_uneven_groups_are_rejected(spec: Capacity, B: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dispatcher(spec, 2)(torch.randn(8, D), routing([[0]] * 8, 2), OneHotExperts(2).float(), num_sequences=B)


# ---- cases that other libraries get wrong ---------------------------------------------------------------------------


def test_negative_logits_are_ranked_by_affinity_and_capacity_may_exceed_tokens() -> None:
    """DeepSpeed ranked raw logits against zeros (negative: nothing kept), and failed where capacity > T."""
    layer = MoELayer.from_spec(
        MoE(router=TopK(top_k=2), experts=Glu(count=4, hidden=6), dispatcher=Capacity(factor=50.0, order="affinity")), D
    )
    with torch.no_grad():
        layer.router.weight_ED.copy_(-torch.ones(4, D) - torch.arange(4.0)[:, None] / 10)
    x_TD = torch.rand(5, D) + 1
    y_TD, report = layer(x_TD)
    assert bool((report.routing.logits_TE < 0).all()) and int(report.dropped) == 0
    loop = LoopDispatcher(Loop(), LayerDims(dim=D, num_experts=4))
    torch.testing.assert_close(y_TD, loop(x_TD, report.routing, layer.experts).y_TO)


@pytest.mark.parametrize("order", ["position", "choice", "priority", "affinity"])
def test_padding_takes_no_slot_and_a_nan_stays_with_its_token(order: str) -> None:
    routed = routing([[0]] * 6, 2)
    valid_T = torch.tensor([False, True, False, True, True, False])
    padded = TokenChoice(**(vars(routed) | {"valid_T": valid_T}))
    x_TD = torch.randn(6, D).masked_fill(~valid_T[:, None], torch.nan)
    out = dispatcher(Capacity(factor=1.0, order=order), 2)(x_TD, padded, OneHotExperts(2).float())  # C = 3
    assert out.y_TO[:, 0].tolist() == valid_T.tolist() and int(out.dropped) == 0
    bad = routed.scores_TE.clone()
    bad[5, 0] = torch.nan
    nan = TokenChoice(**(vars(routed) | {"scores_TE": bad, "logits_TE": bad}))
    out = dispatcher(Capacity(factor=1.0, order=order), 2)(torch.randn(6, D), nan, OneHotExperts(2).float())
    assert out.y_TO[:, 0].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("order", ["position", "choice", "priority", "affinity"])
def test_later_tokens_displace_pairs_unless_slots_go_by_position(order: str) -> None:
    """``causal`` is False where affinities of other tokens decide."""
    before = routing([[0, 1], [2, 3], [0, 2], [0, 2]], 4, [[0.6, 0.3], [0.5, 0.2], [0.1, 0.05], [0.1, 0.05]])
    after = routing([[0, 1], [2, 3], [1, 0], [0, 2]], 4, [[0.6, 0.3], [0.5, 0.2], [0.9, 0.8], [0.1, 0.05]])
    spec = Capacity(factor=0.5, order=order)  # one slot: token 2 may take that of token 0's second choice
    one, other = (kept(spec, routed)[:2] for routed in (before, after))
    assert (one == other) == (order == "position")
    assert spec.causal() == (order in ("position", "choice"))


def test_a_layer_reports_an_order_that_leaks() -> None:
    def moe(order: str) -> MoE:
        return MoE(router=TopK(top_k=2), experts=Glu(count=4, hidden=5), dispatcher=Capacity(order=order))

    assert moe("choice").leak() == "" and moe("priority").leak() == "dispatcher Capacity"


class Inverse(ExpertBank):
    """Gives infinity for empty slots, which hold zeros."""

    num_experts, out_dim = 2, D

    def forward(self, x_ND: Tensor, groups: object) -> Tensor:
        return 1 / x_ND


def test_outputs_for_empty_slots_reach_nothing() -> None:
    routed = routing([[1]] * 4, 2)  # all slots of expert 0 are empty
    routed.gate_TK.requires_grad_()
    x_TD = (torch.rand(4, D) + 0.5).requires_grad_()
    y_TD = dispatcher(Capacity(factor=1.0), 2)(x_TD, routed, Inverse()).y_TO
    torch.testing.assert_close(y_TD, (1 / x_TD) * torch.tensor([1.0, 1, 0, 0])[:, None])
    for grad in torch.autograd.grad(y_TD.sum(), (x_TD, routed.gate_TK)):
        assert bool(grad.isfinite().all()) and grad.any(1).tolist() == [True, True, False, False]
