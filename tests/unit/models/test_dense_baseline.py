"""The dense baseline of a decoder: as many active parameters, without routers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moekit.params import ParameterCount, count_parameters, multiply_adds
from moekit.spec.kinds import ExpertSpec
from moekit_dispatchers.grouped import Grouped
from moekit_experts.ffn import Ffn
from moekit_experts.glu import Glu
from moekit_experts.linear import Linear
from moekit_models.decoder import MTP, At, Decoder, DecoderMoE
from moekit_models.mixture import Mixture
from moekit_models.mla import MLA
from moekit_routers.topk import TopK


def spec_of(
    at: At, experts: ExpertSpec, shared: ExpertSpec | None, ffn: ExpertSpec, *, top_k: int = 3, depth: int = 5
) -> Decoder:
    return Decoder(
        vocab=50,
        dim=48,
        depth=depth,
        attention=MLA(heads=2, kv_rank=8, nope_dim=8, rope_dim=4, value_dim=8),
        ffn=ffn,
        moe=DecoderMoE(at=at, router=TopK(top_k=top_k), experts=experts, shared=shared, dispatcher=Grouped()),
        mtp=MTP(depth=1),
        tied=True,
    )


def without_routers(count: ParameterCount) -> int:
    return count.active() - count.active_parts["routers"]


@pytest.mark.parametrize("ffn", [Glu(hidden=100), Ffn(hidden=90)], ids=["glu", "ffn"])
@pytest.mark.parametrize("experts", [Glu(count=16, hidden=40), Ffn(count=16, hidden=31)], ids=["glus", "ffns"])
@pytest.mark.parametrize("at", [At(first=1), At(every=2), At(first=0)], ids=["first", "every", "all"])
def test_active_parameters_agree_within_a_percent(at: At, experts: ExpertSpec, ffn: ExpertSpec) -> None:
    spec = spec_of(at, experts, replace(experts, count=2), ffn)
    baseline = spec.dense_baseline()
    assert baseline is not None and baseline.moe is None and baseline.mtp == spec.mtp and baseline.tied
    assert type(baseline.ffn) is type(ffn)
    mixture, dense = (without_routers(count_parameters(s)) for s in (spec, baseline))
    assert dense == pytest.approx(mixture, rel=0.01)


def test_the_dense_baselines_width_is_the_mean_over_layers() -> None:
    # 3 routed of 40 and one shared of 40 in four layers, 100 in the first: (4 · 160 + 100) / 5
    baseline = spec_of(At(first=1), Glu(count=16, hidden=40), Glu(count=1, hidden=40), Glu(hidden=100)).dense_baseline()
    assert baseline is not None and baseline.ffn == Glu(hidden=148)


@pytest.mark.parametrize("computed", [0.0, 1.6, 3.0])
def test_the_dense_baseline_does_the_work_that_was_measured(computed: float) -> None:
    spec = spec_of(At(first=1), Glu(count=16, hidden=40), Glu(count=1, hidden=40), Glu(hidden=100))
    glu = 3 * 48  # multiply-adds of a hidden unit
    assert spec.feed_forward_work(computed) == pytest.approx(glu * (100 + 4 * 40 * (1 + computed)))
    baseline = spec.dense_baseline(computed)
    assert baseline is not None
    assert baseline.feed_forward_work() == pytest.approx(spec.feed_forward_work(computed), rel=0.01)
    assert spec.feed_forward_work() == spec.feed_forward_work(3.0)


def test_a_dense_decoder_has_no_dense_baseline() -> None:
    spec = spec_of(At(first=0), Glu(count=4, hidden=8), None, Glu(hidden=8))
    assert replace(spec, moe=None).dense_baseline() is None


def test_a_feed_forward_part_without_a_hidden_width_has_no_dense_baseline() -> None:
    assert spec_of(At(first=1), Glu(count=4, hidden=8), None, Linear()).dense_baseline() is None


def test_a_model_has_no_dense_baseline_by_default() -> None:
    class Plain(Mixture):
        pass

    assert Plain.dense_baseline(object.__new__(Plain)) is None


def test_multiply_adds_are_counted_by_running() -> None:
    assert multiply_adds(Glu(count=9, hidden=5), 7) == 3 * 7 * 5
    assert multiply_adds(Ffn(count=9, hidden=5), 7) == 2 * 7 * 5
    assert multiply_adds(Linear(count=9), 7) == 7 * 7
    assert torch.get_default_device() == torch.device("cpu")
