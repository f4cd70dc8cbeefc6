"""``moekit.layer``: names, mappings, configs and specs make the same layer, with every check of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pages import whole

import moekit
from moekit import MoekitError, SpecError
from moekit.registry import current
from moekit.spec.kinds import MoE
from moekit.spec.replacing import find_all
from moekit_balancers import SignBias
from moekit_experts import Glu
from moekit_routers import TopK

PARTS: dict[str, Any] = {
    "router": {"use": "topk", "top_k": 2},
    "experts": {"use": "glu", "count": 8, "hidden": 16},
    "balancers": {"bias": {"use": "sign_bias", "rate": 0.01}},
}


def test_a_layer_is_made_of_mappings_configs_or_specs_alike() -> None:
    specs = {
        "router": TopK(top_k=2),
        "experts": Glu(count=8, hidden=16),
        "balancers": {"bias": SignBias(rate=0.01)},
    }
    configs = {name: OmegaConf.create(part) for name, part in PARTS.items()}
    one, two, three = (moekit.layer(dim=12, out_dim=6, **parts).spec for parts in (PARTS, specs, configs))
    assert one == two == three
    y, report = moekit.layer(dim=12, out_dim=6, **PARTS)(torch.randn(2, 5, 12))
    assert y.shape == (2, 5, 6)
    assert int(report.load_E.sum()) == 20


def test_the_dispatcher_is_the_one_that_claims_to_be_the_default() -> None:
    spec = moekit.layer(dim=12, **PARTS).spec
    assert spec is not None
    assert moekit.to_plain(spec)["dispatcher"]["use"] == "auto"


def test_parts_are_laid_over_the_mixture_of_a_recipe() -> None:
    recipe = moekit.load("deepseek_v3").model.moe  # type: ignore[attr-defined]
    spec = moekit.layer("deepseek_v3", dim=64, router={"top_k": 3}, shared=None, balancers={"sequence": None}).spec
    assert spec is not None
    assert (spec.router.top_k, spec.shared, list(spec.balancers)) == (3, None, ["bias"])  # type: ignore[attr-defined]
    assert spec.experts == recipe.experts


def test_every_mistake_is_reported_at_once() -> None:
    message = (
        "2 problems\n\n"
        "router 'topk' has no option 'topk'\n  at router.topk  in layer(...)\n  did you mean 'top_k'?\n"
        "  list them: moekit show topk\n\n"
        "unknown expert 'glue' (installed: ffn, glu, linear, logistic, lora)\n  at experts.use  in layer(...)\n"
        "  did you mean 'glu'?\n  list them: moekit ls experts"
    )
    with pytest.raises(SpecError, match=whole(message)):
        moekit.layer(dim=12, router={"use": "topk", "top_k": 1, "topk": 2}, experts="glue")
    with pytest.raises(SpecError, match="top_k=9 is more than the 8 experts there are"):
        moekit.layer(dim=12, **{**PARTS, "router": TopK(top_k=9)})


def test_a_recipe_must_have_one_mixture() -> None:
    dense = next(r.name for r in current().recipes if not find_all(moekit.load(r.name), MoE))
    with pytest.raises(MoekitError, match="the recipe has no mixture; expected one, whose parts the layer gets"):
        moekit.layer(dense, dim=8)


def test_a_layer_prints_its_options() -> None:
    layer = moekit.layer(dim=12, **PARTS)
    assert layer.extra_repr() == (
        "router: topk(top_k=2)\nexperts: glu(count=8, hidden=16)\ndispatcher: auto()\nbias: sign_bias(rate=0.01)"
    )
    assert "router: topk(top_k=2)" in repr(layer)


def test_an_unknown_option_of_a_spec_has_a_hint() -> None:
    with pytest.raises(TypeError, match=r"TopK has no option topk; did you mean top_k\?"):
        TopK(topk=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"TopK needs top_k=\.\.\."):
        TopK()
