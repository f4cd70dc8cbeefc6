"""Putting another component in the place of every one of a kind."""

from __future__ import annotations

from dataclasses import replace

from moekit import load
from moekit.spec.kinds import BalancerSpec, DispatcherSpec, MoE, RouterSpec
from moekit.spec.replacing import find_all, replace_all
from moekit_balancers.z_loss import ZLoss
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.loop import Loop


def test_every_outermost_one_is_replaced_and_nothing_else(real_plugins: None) -> None:
    recipe = load("deepseek_v2")
    seen: list[DispatcherSpec] = []

    def wrap(dispatcher: DispatcherSpec) -> DispatcherSpec:
        seen.append(dispatcher)
        return DeviceCapacity(groups=2, inner=dispatcher)

    moe = recipe.model.moe  # type: ignore[attr-defined]
    after = replace_all(recipe, DispatcherSpec, wrap)
    assert seen == [moe.dispatcher]
    expected = replace(moe, dispatcher=DeviceCapacity(groups=2, inner=moe.dispatcher))
    assert after == replace(recipe, model=replace(recipe.model, moe=expected))  # type: ignore[type-var]


def test_both_halves_of_an_encoder_decoder_are_reached(real_plugins: None) -> None:
    after = replace_all(load("st_moe").model, DispatcherSpec, lambda _: Loop())
    for encoder in (True, False):
        assert after.moe.layer(encoder=encoder).dispatcher == Loop()  # type: ignore[attr-defined]


def test_maps_are_searched_and_a_spec_without_any_is_returned_itself(real_plugins: None) -> None:
    model = load("jacobs1991").model
    assert replace_all(model, Capacity, lambda c: c) is model
    assert replace_all(load("deepseek_v3"), RouterSpec, lambda router: router) == load("deepseek_v3")
    recipe = load("deepseek_v3")
    moe = replace_all(recipe, BalancerSpec, lambda _: ZLoss(weight=0.5)).model.moe  # type: ignore[attr-defined]
    assert moe.balancers == dict.fromkeys(recipe.model.moe.balancers, ZLoss(weight=0.5))  # type: ignore[attr-defined]


def test_every_outermost_one_is_found_in_order(real_plugins: None) -> None:
    recipe = load("gshard")
    assert find_all(recipe, RouterSpec) == [moe.router for moe in find_all(recipe.model, MoE)] != []
    assert find_all(load("base/language_model"), RouterSpec) == []
