"""Dropping by device: which pairs drop, when, and how it wraps another dispatcher."""

from __future__ import annotations

import pytest
import torch
from routings import token_choice

from moekit import load
from moekit.contracts import LayerDims
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.routing import TokenChoice
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import DispatcherSpec, MoE
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.device_capacity.module import DeviceCapacityDispatcher
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.soft import Soft
from moekit_experts.glu import Glu
from moekit_routers.topk import TopK
from moekit_testing.fixtures.reference import OneHotExperts

D, E = 4, 4


def routing(chosen: list[list[int]], gates: list[list[float]]) -> TokenChoice:
    """Affinities are the gates."""
    return token_choice(torch.zeros(len(chosen), E).scatter(1, torch.tensor(chosen), torch.tensor(gates)), chosen)


def dispatcher(
    factor: float = 1.0, exempt: float = 0.0, groups: int = 2, inner: DispatcherSpec | None = None
) -> DeviceCapacityDispatcher:
    spec = DeviceCapacity(groups=groups, factor=factor, exempt=exempt, inner=inner or Grouped())
    return DeviceCapacityDispatcher(spec, LayerDims(dim=D, num_experts=E))


ALL_ON_DEVICE_0 = routing([[0, 1], [1, 0], [0, 1], [1, 2]], [[0.6, 0.1], [0.5, 0.3], [0.4, 0.2], [0.7, 0.15]])


def test_a_full_device_drops_its_lowest_affinities_and_keeps_gates() -> None:
    """Eight pairs on two devices: four each. Seven choose device 0, which keeps .7, .6, .5 and .4."""
    out = dispatcher()(torch.randn(4, D), ALL_ON_DEVICE_0, OneHotExperts(E).float())
    assert int(out.dropped) == 3
    want = [[0.6, 0, 0, 0], [0, 0.5, 0, 0], [0.4, 0, 0, 0], [0, 0.7, 0.15, 0]]
    torch.testing.assert_close(out.y_TO.detach(), torch.tensor(want))


@pytest.mark.parametrize("budget", [0, 1, 4, 9])
def test_the_budget_can_be_given_in_pairs(budget: int) -> None:
    spec = DeviceCapacity(groups=2, budget=budget, exempt=0, inner=Grouped())
    counted = DeviceCapacityDispatcher(spec, LayerDims(dim=D, num_experts=E))
    out = counted(torch.randn(4, D), ALL_ON_DEVICE_0, OneHotExperts(E).float())
    assert int(out.dropped) == max(7 - budget, 0) + (budget == 0)
    assert f"budget={budget}" in repr(counted)
    with pytest.raises(ConflictError, match="is the budget itself, so factor=1"):
        DeviceCapacity(groups=2, budget=budget, factor=1.0, inner=Grouped())


def test_evaluation_drops_nothing() -> None:
    out = dispatcher(factor=0.1).eval()(torch.randn(4, D), ALL_ON_DEVICE_0, OneHotExperts(E).float())
    assert int(out.dropped) == 0 and int((out.y_TO != 0).sum()) == 8


def test_of_equal_affinities_the_earlier_pairs_are_kept() -> None:
    routed = routing([[0], [1], [0], [1]], [[0.5]] * 4)
    out = dispatcher()(torch.randn(4, D), routed, OneHotExperts(E).float())
    assert out.y_TO.any(1).tolist() == [True, True, False, False]


def test_padding_takes_no_budget_and_a_token_of_nan_is_dropped_first() -> None:
    scores_TE = torch.zeros(3, E).index_fill(1, torch.tensor([0]), 0.5)
    scores_TE[1, 0] = torch.nan
    routed = routing([[0]] * 3, [[0.5]] * 3)
    for valid, kept in (([False, True, True], [False, True, True]), ([True, True, True], [True, False, True])):
        nan = TokenChoice(**(vars(routed) | {"scores_TE": scores_TE, "valid_T": torch.tensor(valid)}))
        part = dispatcher(groups=1, factor=1.0 if sum(valid) == 2 else 0.7)  # two fit either time
        assert part(torch.randn(3, D), nan, OneHotExperts(E).float()).y_TO.any(1).tolist() == kept


def test_exempt_sequences_lose_nothing_and_use_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second sequence is exempt: its two pairs of lowest affinity stay, and the first has no budget left."""
    routed = routing([[0], [1], [0], [1]], [[0.9], [0.8], [0.2], [0.1]])
    draws = torch.tensor([0.5, 0.05])
    monkeypatch.setattr(torch, "rand", lambda *size, dtype, device: draws)
    out = dispatcher(exempt=0.1)(torch.randn(4, D), routed, OneHotExperts(E).float(), num_sequences=2)
    assert out.y_TO.any(1).tolist() == [False, False, True, True] and int(out.dropped) == 2


def test_about_a_tenth_of_the_sequences_is_exempt_and_each_pass_samples_anew() -> None:
    B = 4000
    routed = routing([[0]] * B, [[0.5]] * B)
    part = dispatcher(factor=2e-5, exempt=0.1)  # a budget of 0: only exempt pairs are kept
    torch.manual_seed(0)
    first, second = (
        part(torch.randn(B, D), routed, OneHotExperts(E).float(), num_sequences=B).y_TO.any(1) for _ in range(2)
    )
    for kept in (first, second):
        assert 0.08 < float(kept.float().mean()) < 0.12
    assert not torch.equal(first, second)


def test_without_exemption_no_random_number_is_used() -> None:
    before = torch.get_rng_state()
    dispatcher()(torch.ones(4, D), ALL_ON_DEVICE_0, OneHotExperts(E).float())
    assert torch.equal(before, torch.get_rng_state())


def test_inner_drops_are_added_and_choices_that_are_not_sent_are_no_drops() -> None:
    sent_TK = torch.tensor([[True, False], [True, True], [True, False], [True, True]])
    routed = TokenChoice(**(vars(ALL_ON_DEVICE_0) | {"sent_TK": sent_TK}))
    # Six pairs sent, three a device: .7, .6, .5 stay, .4 and .3 go; inside, one slot an expert: .7 finds none.
    out = dispatcher(inner=Capacity(factor=0.5))(torch.randn(4, D), routed, OneHotExperts(E).float())
    assert int(out.dropped) == 2 + 1
    assert out.y_TO.any(1).tolist() == [True, True, False, True]


def test_the_inner_dispatcher_is_built_from_its_spec_and_has_the_layers_sizes() -> None:
    layer = MoELayer.from_spec(
        MoE(
            router=TopK(top_k=2),
            experts=Glu(count=E, hidden=5),
            dispatcher=DeviceCapacity(groups=2, inner=DeviceCapacity(groups=4, inner=Grouped())),
        ),
        D,
    )
    assert isinstance(layer.dispatcher, DeviceCapacityDispatcher)
    assert isinstance(layer.dispatcher.inner, DeviceCapacityDispatcher)
    assert isinstance(layer.dispatcher.inner.inner, GroupedDispatcher)
    assert not layer.dispatcher.inner.eval().training and "groups=4, factor=1, exempt=0.1" in repr(layer)


def test_the_report_counts_load_before_drops() -> None:
    moe = MoE(
        router=TopK(top_k=2),
        experts=Glu(count=E, hidden=5),
        dispatcher=DeviceCapacity(groups=2, factor=0.5, exempt=0.0, inner=Grouped()),
    )
    _, report = MoELayer.from_spec(moe, D)(torch.randn(2, 6, D))
    assert int(report.load_E.sum()) == 24 and int(report.dropped) >= 12


def test_conflicts_are_reported_when_a_layer_is_composed() -> None:
    with pytest.raises(ValueError, match=r"inner: dispatcher Soft takes soft, but must take token_choice"):
        DeviceCapacity(groups=2, inner=Soft())
    uneven = DeviceCapacity(groups=3, inner=Grouped())
    message = r"groups=3 of the dispatcher does not divide the 4 experts evenly"
    for outer in (uneven, DeviceCapacity(groups=2, inner=uneven)):
        with pytest.raises(ValueError, match=message):
            MoE(router=TopK(top_k=2), experts=Glu(count=E, hidden=5), dispatcher=outer)
    with pytest.raises(ValueError, match=message):
        DeviceCapacityDispatcher(uneven, LayerDims(dim=D, num_experts=E))


def test_it_is_as_causal_as_the_inner_dispatcher() -> None:
    assert DeviceCapacity(groups=2, inner=Loop()).causal()
    assert not DeviceCapacity(groups=2, inner=Capacity(order="priority")).causal()


def test_options_and_the_inner_dispatcher_come_from_yaml_and_are_checked() -> None:
    nested = (
        "model.moe.dispatcher={use: device_capacity, groups: 8, exempt: 0.2, inner: {use: capacity, order: choice}}"
    )
    spec = load("deepseek_v3", [nested]).model.moe.dispatcher  # type: ignore[attr-defined]
    assert spec == DeviceCapacity(groups=8, exempt=0.2, inner=Capacity(order="choice"))
    with pytest.raises(MoekitError, match=r"groups=7 of the dispatcher does not divide the 64 experts"):
        load("deepseek_v3", [nested.replace("groups: 8", "groups: 7")])


def test_sequences_of_unequal_length_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"4 tokens are not 3 sequences of one length"):
        dispatcher(exempt=0.1)(torch.randn(4, D), ALL_ON_DEVICE_0, OneHotExperts(E).float(), num_sequences=3)
