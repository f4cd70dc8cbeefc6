"""The decoder's spec: what it refuses, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from moekit.spec.kinds import MoE, RouterSpec
from moekit_balancers.sign_bias import SignBias
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_models.decoder import At, Decoder, DecoderMoE
from moekit_models.gqa import GQA
from moekit_routers.topk import TopK


def moe_of(at: At, **changes: Any) -> DecoderMoE:
    parts: dict[str, Any] = {"router": TopK(top_k=2), "experts": Glu(count=6, hidden=4), "dispatcher": Grouped()}
    return DecoderMoE(at=at, **{**parts, **changes})


def spec_of(**changes: Any) -> Decoder:
    parts: dict[str, Any] = {"attention": GQA(heads=2, head_dim=8), "ffn": Glu(hidden=12), "moe": moe_of(At(first=1))}
    return Decoder(vocab=11, dim=16, depth=3, **{**parts, **changes})


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ({}, r"give exactly one of first, every, layers \(given: none\)"),
        ({"first": 1, "every": 2}, r"give exactly one of first, every, layers \(given: first, every\)"),
        ({"layers": [1, 1]}, r"layers=\[1, 1\] must be different numbers from 0"),
        ({"layers": [-1]}, r"layers=\[-1\] must be different numbers from 0"),
        ({"every": 0}, r"every=0 is out of range \(>= 1\)"),
    ],
)
def test_ways_to_place_mixtures_are_checked(ways: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        At(**ways)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (At(first=3), r"moe.at names no layer, but the decoder has layers 0 to 2"),
        (At(every=4), r"moe.at names no layer, but the decoder has layers 0 to 2"),
        (At(layers=[1, 3]), r"moe.at names \[1, 3\], but the decoder has layers 0 to 2"),
        (At(layers=[]), r"moe.at names no layer, but the decoder has layers 0 to 2"),
    ],
)
def test_layers_that_do_not_exist_are_refused(at: At, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(moe=moe_of(at))


def test_two_ways_to_draw_weights_are_refused() -> None:
    assert spec_of(init_std=0.1).init_scale is None
    with pytest.raises(ValueError, match=r"init_std=0.1 and init_scale=0.5 are two ways .* set one of them to null"):
        spec_of(init_std=0.1, init_scale=0.5)


@dataclass(frozen=True, kw_only=True)
class Batchwise(RouterSpec):
    """A router that sees the whole sequence before it decides."""

    causal: ClassVar[bool] = False


def test_a_router_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"router Batchwise would leak later tokens: .* use topk or noisy_topk"):
        spec_of(moe=moe_of(At(first=1), router=Batchwise()))


def test_a_dense_layer_is_one_expert() -> None:
    with pytest.raises(ValueError, match=r"ffn\.count=2 must be 1"):
        spec_of(ffn=Glu(count=2, hidden=4))


def test_a_decoders_mixture_is_a_mixture() -> None:
    assert issubclass(DecoderMoE, MoE)
    with pytest.raises(ValueError, match="gives a selection bias"):
        moe_of(At(first=1), router=NoBias(), balancers={"bias": SignBias(rate=0.1)})


@dataclass(frozen=True, kw_only=True)
class NoBias(RouterSpec):
    """A router that a selection bias has no effect on."""

    takes_bias: ClassVar[bool] = False
