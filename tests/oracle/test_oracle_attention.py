"""Attention (GQA, MLA, relative position biases), its caches and YaRN against loops over positions and heads, in fp64.

Outputs, and gradients of the input and of every weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from agreement import assert_agree, spread
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit import Cache
from moekit_models.gqa import GQA, Temperature
from moekit_models.gqa import naive as gqa_naive
from moekit_models.gqa.module import GroupedQueryAttention
from moekit_models.mla import MLA
from moekit_models.mla import naive as mla_naive
from moekit_models.mla.module import MultiHeadLatentAttention
from moekit_models.relative import Relative
from moekit_models.relative import naive as relative_naive
from moekit_models.relative.module import RelativeAttention
from moekit_models.rotary import rotate, score_scale, turns
from moekit_models.stretch import LongRope, Stretch
from moekit_models.yarn import Yarn

DIM = 6
RELATIVE = Relative(heads=2, head_dim=4, buckets=8, max_distance=7, scale=0.7)
Ramp = Literal["index", "turns"]


def assert_attention_agrees(
    module: nn.Module, naive: Callable[[Tensor, dict[str, Tensor]], Tensor], length: int
) -> None:
    """Outputs and gradients of two sequences."""
    x_BSD = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    weights = dict(module.named_parameters())
    slow = torch.stack([naive(x_SD, weights) for x_SD in x_BSD])
    assert_agree(module(x_BSD), slow, {"x": x_BSD, **weights}, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, None), (4, 2), (3, 1)])
def test_grouped_query_attention(heads: int, kv_heads: int | None, qk_norm: bool, length: int) -> None:
    spec = GQA(heads=heads, kv_heads=kv_heads, head_dim=4, rope_theta=100.0, qk_norm=qk_norm, norm_eps=1e-3)
    naive = partial(gqa_naive.attend, heads=heads, kv_heads=kv_heads or heads, theta=100.0, eps=1e-3)
    assert_attention_agrees(spread(GroupedQueryAttention(spec, DIM)), naive, length)


OPEN_MODELS: dict[str, dict[str, Any]] = {
    "Qwen2": {"bias": "qkv"},
    "OLMoE": {"qk_norm": True, "norm_over": "all", "clip": 0.4},
    "Qwen3 with clip": {"qk_norm": True, "clip": 0.4},
    "GLM-4.5": {"bias": "qkv", "qk_norm": True, "rotary_dim": 2},
    "Mixtral": {"window": 3},
    "gpt-oss": {"bias": "all", "sinks": True, "window": 3},
    "gpt-oss, all positions": {"bias": "all", "sinks": True},
    "Llama 4": {"qk_norm": True, "norm_weight": False, "chunk": 3},
    "Llama 4, no positions": {"rotary_dim": 0, "temperature": Temperature(scale=0.7, floor=2)},
    "chunks and sinks": {"chunk": 2, "sinks": True, "bias": "all"},
}


def options_of(spec: GQA) -> dict[str, Any]:
    """The options under the names of the reference implementation."""
    return {
        "heads": spec.heads,
        "kv_heads": spec.kv_heads or spec.heads,
        "theta": spec.rope_theta,
        "eps": spec.norm_eps,
        "norm_over": spec.norm_over,
        "clip": spec.clip or math.inf,
        "rotary": -1 if spec.rotary_dim == 0 else spec.rotary_dim or 0,
        "window": spec.window or 0,
        "chunk": spec.chunk or 0,
        "normed": spec.qk_norm and not spec.norm_weight,
        "temperature": None if spec.temperature is None else (spec.temperature.scale, spec.temperature.floor),
    }


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("model", OPEN_MODELS)
def test_attention_of_open_models(model: str, length: int) -> None:
    spec = GQA(heads=4, kv_heads=2, head_dim=4, rope_theta=100.0, norm_eps=1e-3, **OPEN_MODELS[model])
    module = spread(GroupedQueryAttention(spec, DIM))
    assert_attention_agrees(module, partial(gqa_naive.attend, **options_of(spec)), length)


@pytest.mark.parametrize("model", OPEN_MODELS)
@torch.no_grad()
def test_a_cache_changes_nothing_in_open_models(model: str) -> None:
    spec = GQA(heads=4, kv_heads=2, head_dim=4, rope_theta=100.0, norm_eps=1e-3, **OPEN_MODELS[model])
    module = seeded_spread(GroupedQueryAttention(spec, DIM))
    x_SD = torch.randn(9, DIM, dtype=torch.float64)
    expected = gqa_naive.attend(x_SD, dict(module.named_parameters()), **options_of(spec))
    for lengths in ([9], [4, 5], [1] * 9, [6, 1, 2]):
        assert_equal(with_cache(module, x_SD, lengths)[0], expected)


# values narrower than, as wide as, and wider than keys: the module pads one or the other
@pytest.mark.parametrize("value_dim", [3, 6, 9])
@pytest.mark.parametrize("query_rank", [None, 5])
@pytest.mark.parametrize("form", [mla_naive.attend, mla_naive.attend_absorbed])
def test_multi_head_latent_attention(
    form: Callable[[Tensor, dict[str, Tensor], mla_naive.Sizes], Tensor], query_rank: int | None, value_dim: int
) -> None:
    spec = MLA(
        heads=2,
        query_rank=query_rank,
        kv_rank=5,
        nope_dim=2,
        rope_dim=4,
        value_dim=value_dim,
        rope_theta=100.0,
        norm_eps=1e-3,
    )
    sizes = mla_naive.Sizes(heads=2, kv_rank=5, nope=2, rope=4, value=value_dim, theta=100.0, eps=1e-3)
    assert_attention_agrees(spread(MultiHeadLatentAttention(spec, DIM)), lambda x_SD, w: form(x_SD, w, sizes), 6)


@torch.no_grad()
def test_the_absorbed_form_of_mla_is_the_same_function() -> None:
    spec = MLA(heads=3, query_rank=4, kv_rank=5, nope_dim=3, rope_dim=2, value_dim=4)
    weights = dict(spread(MultiHeadLatentAttention(spec, DIM)).named_parameters())
    sizes = mla_naive.Sizes(heads=3, kv_rank=5, nope=3, rope=2, value=4, theta=1e4, eps=1e-6)
    x_SD = torch.randn(8, DIM, dtype=torch.float64)
    absorbed, plain = (form(x_SD, weights, sizes) for form in (mla_naive.attend_absorbed, mla_naive.attend))
    torch.testing.assert_close(absorbed, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 11])
@pytest.mark.parametrize("causal", [True, False])
def test_relative_attention(causal: bool, length: int) -> None:
    naive = partial(relative_naive.attend, heads=2, buckets=8, max_distance=7, scale=0.7, causal=causal)
    assert_attention_agrees(RelativeAttention(RELATIVE, DIM, causal).double(), naive, length)


@pytest.mark.parametrize("length", [1, 4])
def test_relative_attention_with_padding_is_that_of_the_valid_part(length: int) -> None:
    module = RelativeAttention(RELATIVE, DIM, causal=False).double()
    x_BSD = torch.randn(1, 7, DIM, dtype=torch.float64, requires_grad=True)
    weights = dict(module.named_parameters())
    naive = partial(relative_naive.attend, heads=2, buckets=8, max_distance=7, scale=0.7, causal=False)
    fast = module(x_BSD, valid_BS=(torch.arange(7) < length)[None])[:, :length]
    assert_agree(fast, naive(x_BSD[0, :length], weights)[None], {"x": x_BSD, **weights})


# ---- with a cache ---------------------------------------------------------------------------------------------------

YARN = Yarn(factor=3.0, original=8, beta_fast=2.0, beta_slow=0.5, mscale=0.2)
LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def yarn_numbers(yarn: Yarn) -> dict[str, float]:
    """The options under the names of the reference implementation."""
    return {
        "s": yarn.factor,
        "L": yarn.original,
        "alpha": yarn.beta_slow,
        "beta": yarn.beta_fast,
        "m": yarn.mscale,
        "by_index": float(yarn.ramp == "index"),
        "whole": float(yarn.truncate),
    }


def seeded_spread(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return spread(module)


def with_cache(module: nn.Module, x_SD: Tensor, lengths: list[int]) -> tuple[Tensor, Cache]:
    """One sequence in several calls: the outputs, and the cache."""
    cache = Cache()
    parts = [module(part[None], cache=cache)[0] for part in torch.split(x_SD, lengths)]
    return torch.cat(parts), cache


def cached_rows(cache: Cache, *like: Tensor) -> tuple[Tensor, ...]:
    """The rows in a cache, of the sizes of ``like``."""
    return tuple(row[0] for row in cache.extend(*(t[None, ..., :0, :] for t in like)))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


# values narrower than, as wide as, and wider than keys
@pytest.mark.parametrize("value_dim", [2, 6, 8])
@pytest.mark.parametrize("yarn", [None, YARN])
@pytest.mark.parametrize("query_rank", [None, 5])
@given(lengths=LENGTHS)
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_mla_caches_latents_and_rotated_keys_alone(
    query_rank: int | None, yarn: Yarn | None, value_dim: int, lengths: list[int]
) -> None:
    """Compared with both of the paper's forms."""
    spec = MLA(heads=2, query_rank=query_rank, kv_rank=5, nope_dim=2, rope_dim=4, value_dim=value_dim,
               rope_theta=100.0, yarn=yarn, norm_eps=1e-3)  # fmt: skip
    module = seeded_spread(MultiHeadLatentAttention(spec, DIM))
    n = mla_naive.Sizes(heads=2, kv_rank=5, nope=2, rope=4, value=value_dim, theta=100.0, eps=1e-3,
                        yarn=yarn_numbers(yarn) if yarn else None)  # fmt: skip
    w, x_SD = dict(module.named_parameters()), torch.randn(sum(lengths), DIM, dtype=torch.float64)
    found, cache = with_cache(module, x_SD, lengths)
    assert_equal(found, mla_naive.attend_absorbed(x_SD, w, n))
    assert_equal(found, mla_naive.attend(x_SD, w, n))
    kept = [torch.cat([mla_naive.latent(x, w, n), mla_naive.shared_key(x, w, n, t)]) for t, x in enumerate(x_SD)]
    assert cache.numel() == len(x_SD) * (spec.kv_rank + spec.rope_dim)
    assert_equal(cached_rows(cache, torch.stack(kept))[0], torch.stack(kept))


@pytest.mark.parametrize("yarn", [None, YARN])
@pytest.mark.parametrize(("heads", "kv_heads", "norm"), [(3, 3, False), (4, 2, True), (3, 1, False)])
@given(lengths=LENGTHS)
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_gqa_caches_keys_and_values(
    heads: int, kv_heads: int, norm: bool, yarn: Yarn | None, lengths: list[int]
) -> None:
    spec = GQA(heads=heads, kv_heads=kv_heads, head_dim=4, rope_theta=100.0, yarn=yarn, qk_norm=norm, norm_eps=1e-3)
    module = seeded_spread(GroupedQueryAttention(spec, DIM))
    w, x_SD = dict(module.named_parameters()), torch.randn(sum(lengths), DIM, dtype=torch.float64)
    numbers = yarn_numbers(yarn) if yarn else None
    found, cache = with_cache(module, x_SD, lengths)
    assert_equal(found, gqa_naive.attend(x_SD, w, heads=heads, kv_heads=kv_heads, theta=100.0, eps=1e-3, yarn=numbers))
    how = gqa_naive.Heads(4, 100.0, 1e-3, numbers)
    keys = torch.stack(
        [torch.stack([gqa_naive.head(x, w, "k", g, t, how) for t, x in enumerate(x_SD)]) for g in range(kv_heads)]
    )
    values = (x_SD @ w["v.weight"].T).unflatten(1, (kv_heads, 4)).transpose(0, 1)
    for kept, expected in zip(cached_rows(cache, keys, values), (keys, values), strict=True):
        assert_equal(kept, expected)


@pytest.mark.parametrize("scale", [0.7, 1.0])
@given(lengths=LENGTHS)
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_relative_distances_count_cached_positions(scale: float, lengths: list[int]) -> None:
    """The last bucket begins at 6 here, so that some distances are beyond it."""
    spec = Relative(heads=2, head_dim=4, buckets=8, max_distance=6, scale=scale)
    module = seeded_spread(RelativeAttention(spec, DIM))
    w, x_SD = dict(module.named_parameters()), torch.randn(sum(lengths), DIM, dtype=torch.float64)
    found, _ = with_cache(module, x_SD, lengths)
    assert_equal(found, relative_naive.attend(x_SD, w, heads=2, causal=True, buckets=8, max_distance=6, scale=scale))


# ---- YaRN -----------------------------------------------------------------------------------------------------------

V3 = Yarn(factor=40.0)
V2 = Yarn(factor=40.0, mscale=0.0707)


def turns_of(width: int, theta: float, yarn: Yarn | None) -> Tensor:
    """Radians a position of each pair, read off position 1."""
    x = torch.zeros(2, width, dtype=torch.float64)
    x[:, : width // 2] = 1
    y = rotate(x, turns(x, width, theta, yarn))[1]
    return torch.atan2(y[width // 2 :], y[: width // 2])


@given(
    st.integers(1, 16),
    st.floats(1.5, 1e5),
    st.floats(1, 100),
    st.integers(1, 10**5),
    st.floats(0.01, 4),
    st.floats(1.1, 50),
    st.sampled_from(["index", "turns"]),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_yarn_angles_are_the_references(
    pairs: int, theta: float, s: float, L: int, slow: float, times: float, ramp: Ramp, truncate: bool
) -> None:
    yarn = Yarn(factor=s, original=L, beta_slow=slow, beta_fast=slow * times, ramp=ramp, truncate=truncate)
    found = turns_of(2 * pairs, theta, yarn)
    for naive in (gqa_naive, mla_naive):
        expected = [naive.frequency(i, 2 * pairs, theta, yarn_numbers(yarn)) for i in range(pairs)]
        torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-7, atol=1e-12)
    plain = turns_of(2 * pairs, theta, None)
    assert (found <= plain * (1 + 1e-12)).all() and (found >= plain / s * (1 - 1e-12)).all()


def test_yarn_with_a_factor_of_1_changes_nothing() -> None:
    torch.testing.assert_close(turns_of(64, 1e4, Yarn(factor=1.0)), turns_of(64, 1e4, None), rtol=1e-14, atol=0)
    assert Yarn(factor=1.0).score_factor() == 1.0


def test_yarn_stretches_the_pairs_that_deepseek_stretches() -> None:
    """64 rotary dimensions, base 10^4: pairs to the 10th keep their angles, from the 23rd on they are a fortieth."""
    assert V3.bounds(64, 1e4) == (10, 23)
    plain, found = turns_of(64, 1e4, None), turns_of(64, 1e4, V3)
    by_turns = turns_of(64, 1e4, Yarn(factor=40.0, ramp="turns"))
    for angles in (found, by_turns):
        torch.testing.assert_close(angles[:11], plain[:11], rtol=1e-12, atol=0)
        torch.testing.assert_close(angles[23:], plain[23:] / 40, rtol=1e-9, atol=0)
    assert (found[11:23] < plain[11:23]).all() and (found[11:23] > plain[11:23] / 40).all()
    assert (by_turns[11:23] < found[11:23]).all()  # the two ramps agree only at their ends
    # by the paper's definition: 32 turns in 4096 positions is one in 128
    turns = 4096 / (2 * math.pi) * plain
    assert turns[10] > 32 > turns[11] and turns[22] > 1 > turns[23]


@pytest.mark.parametrize(("yarn", "root", "factor"), [(V3, 1.368888, 1.873854), (V2, 1.260804, 1.589627)])
def test_yarn_multiplies_scores_by_the_square_of_the_temperature(yarn: Yarn, root: float, factor: float) -> None:
    assert yarn.score_factor() == pytest.approx(factor, abs=1e-6)  # squares of roots that were rounded first
    assert math.sqrt(yarn.score_factor()) == pytest.approx(root, abs=5e-7)
    assert score_scale(192, yarn) == pytest.approx(factor / math.sqrt(192), abs=1e-7)
    assert gqa_naive.yarn_temperature(yarn_numbers(yarn)) == pytest.approx(1 / factor, abs=1e-6)


@pytest.mark.parametrize("ramp", ["index", "turns"])
@pytest.mark.parametrize("kind", ["gqa", "mla", "mla absorbed"])
def test_attention_with_yarn(kind: str, ramp: Ramp) -> None:
    yarn = Yarn(factor=8.0, original=40, beta_fast=4.0, beta_slow=0.5, mscale=0.3, ramp=ramp)
    numbers = yarn_numbers(yarn)
    if kind == "gqa":
        spec = GQA(heads=4, kv_heads=2, head_dim=8, rope_theta=100.0, yarn=yarn)
        naive = partial(gqa_naive.attend, heads=4, kv_heads=2, theta=100.0, eps=1e-6, yarn=numbers)
        assert_attention_agrees(spread(GroupedQueryAttention(spec, DIM)), naive, 6)
        return
    sizes = mla_naive.Sizes(heads=2, kv_rank=5, nope=2, rope=8, value=3, theta=100.0, eps=1e-6, yarn=numbers)
    module = MultiHeadLatentAttention(
        MLA(heads=2, kv_rank=5, nope_dim=2, rope_dim=8, value_dim=3, rope_theta=100.0, yarn=yarn), DIM
    )
    form = mla_naive.attend if kind == "mla" else mla_naive.attend_absorbed
    assert_attention_agrees(spread(module), lambda x_SD, w: form(x_SD, w, sizes), 6)


def test_scores_under_yarn_depend_only_on_the_difference_of_positions() -> None:
    q, k = torch.randn(2, 8, dtype=torch.float64)
    yarn = Yarn(factor=4.0, original=16, beta_fast=2.0, beta_slow=0.1)
    by = turns(q.expand(20, 8), 8, 10.0, yarn)
    score = rotate(q.expand(20, 8), by) @ rotate(k.expand(20, 8), by).T
    for shift in (-7, 0, 3):
        diagonal = score.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12)


def test_without_a_ramp_a_pair_keeps_its_angle_or_has_it_divided() -> None:
    step = Yarn(factor=4.0, original=100, beta_fast=2.0, beta_slow=2.0, ramp="turns")
    plain, found = turns_of(16, 100.0, None), turns_of(16, 100.0, step)
    keeps = 100 / (2 * math.pi) * plain > 2
    assert keeps.any() and not keeps.all()
    torch.testing.assert_close(found, torch.where(keeps, plain, plain / 4), rtol=1e-12, atol=0)


def test_yarn_options_out_of_range_raise() -> None:
    with pytest.raises(ValueError, match=r"beta_fast=0.5 must be at least beta_slow=1"):
        Yarn(factor=2.0, beta_fast=0.5)
    assert Yarn(factor=32.0, beta_fast=1.0).bounds(64, 50000.0) == (19, 20)  # Kimi-K2: all between two pairs
    with pytest.raises(ValueError, match=r"factor=0.5 is out of range \(>= 1\)"):
        Yarn(factor=0.5)
    for make in (
        lambda: GQA(heads=1, head_dim=2, rope_theta=1.0, yarn=V3),
        lambda: MLA(heads=1, kv_rank=2, nope_dim=2, rope_dim=2, value_dim=2, rope_theta=1.0, yarn=V3),
    ):
        with pytest.raises(ValueError, match="rope_theta=1 must be more than 1 under yarn"):
            make()


DOCUMENTS = ((3, 1, 3), (7, 0, 0), (1, 2, 4))
"""Positions of each document in three sequences of seven."""


def apart(naive: Callable[[Tensor, dict[str, Tensor]], Tensor]) -> Callable[[Tensor, dict[str, Tensor], Any], Tensor]:
    """A reference implementation that computes each document as if it were alone: its positions start from 0."""
    return lambda x_SD, weights, lengths: torch.cat(
        [naive(part, weights) for part in torch.split(x_SD, list(lengths)) if len(part)]
    )


MLA_SMALL = MLA(heads=2, query_rank=5, kv_rank=4, nope_dim=3, rope_dim=2, value_dim=3, rope_theta=100.0)
PACKED: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {
    **{
        model: (
            GroupedQueryAttention(spec, DIM), partial(gqa_naive.attend, **options_of(spec)),
        )
        for model in OPEN_MODELS
        for spec in [GQA(heads=4, kv_heads=2, head_dim=4, rope_theta=100.0, norm_eps=1e-3, **OPEN_MODELS[model])]
        if spec.keeps_documents()
    },
    "MLA": (
        MultiHeadLatentAttention(MLA_SMALL, DIM),
        lambda x_SD, w: mla_naive.attend(
            x_SD, w, mla_naive.Sizes(heads=2, kv_rank=4, nope=3, rope=2, value=3, theta=100.0, eps=MLA_SMALL.norm_eps)
        ),
    ),
    "relative": (
        RelativeAttention(RELATIVE, DIM),
        lambda x_SD, w: relative_naive.attend(
            x_SD, w, heads=2, buckets=8, max_distance=7, scale=0.7, causal=True
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", PACKED)
def test_documents_of_a_sequence_are_computed_as_if_alone(model: str) -> None:
    """Outputs, and gradients of the input and of every weight."""
    module, naive = PACKED[model]
    spread(module)
    x_BSD = torch.randn(3, 7, DIM, dtype=torch.float64, requires_grad=True)
    weights = dict(module.named_parameters())
    slow = torch.stack([apart(naive)(x_SD, weights, n) for x_SD, n in zip(x_BSD, DOCUMENTS, strict=True)])
    document_BS = torch.tensor([[i for i, n in enumerate(lengths) for _ in range(n)] for lengths in DOCUMENTS])
    assert_agree(module(x_BSD, document_BS=document_BS), slow, {"x": x_BSD, **weights}, rtol=1e-11, atol=1e-12)


# ---- other ways to a longer context ---------------------------------------------------------------------------------

SHORT, LONG = [1.0, 1.1, 1.3, 1.7], [1.0, 2.0, 4.0, 8.0]
LONGER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"stretch": Stretch(rule="linear", factor=2.5)}, {"rule": "linear", "s": 2.5}),
    "dynamic": (
        {"stretch": Stretch(rule="dynamic", factor=3.0, original=4)},
        {"rule": "dynamic", "s": 3.0, "L": 4},
    ),
    "long_rope": (
        {"long_rope": LongRope(short=SHORT, long=LONG, original=4, short_scale=1.2, long_scale=1.5)},
        {"rule": "long", "short": SHORT, "long": LONG, "L": 4},
    ),
}
"""The options, and the same under the names of the reference implementation."""


@pytest.mark.parametrize("length", [3, 4, 7])  # shorter than the original context, as long, longer
@pytest.mark.parametrize("way", LONGER)
def test_attention_with_other_ways_to_a_longer_context(way: str, length: int) -> None:
    options, longer = LONGER[way]
    if way == "long_rope":
        longer = {**longer, "scale": 1.5 if length > 4 else 1.2}
    spec = GQA(heads=4, kv_heads=2, head_dim=8, rope_theta=100.0, **options)
    naive = partial(gqa_naive.attend, heads=4, kv_heads=2, theta=100.0, eps=1e-6, longer=longer)
    assert_attention_agrees(spread(GroupedQueryAttention(spec, DIM)), naive, length)


def test_a_scale_of_the_rotated_part_alone() -> None:
    long_rope = LongRope(short=SHORT[:2], long=LONG[:2], original=3, short_scale=1.2)
    spec = GQA(heads=2, head_dim=8, rotary_dim=4, rope_theta=100.0, long_rope=long_rope)
    longer = {"rule": "long", "short": SHORT, "long": LONG, "L": 3, "scale": 1.2}
    naive = partial(gqa_naive.attend, heads=2, kv_heads=2, theta=100.0, eps=1e-6, rotary=4, longer=longer)
    assert_attention_agrees(spread(GroupedQueryAttention(spec, DIM)), naive, 5)


@torch.no_grad()
def test_a_cache_counts_as_length_of_the_text_where_angles_do_not_read_it() -> None:
    options, longer = LONGER["linear"]
    spec = GQA(heads=2, head_dim=8, rope_theta=100.0, **options)
    module = seeded_spread(GroupedQueryAttention(spec, DIM))
    x_SD = torch.randn(7, DIM, dtype=torch.float64)
    w = dict(module.named_parameters())
    expected = gqa_naive.attend(x_SD, w, heads=2, kv_heads=2, theta=100.0, eps=1e-6, longer=longer)
    assert_equal(with_cache(module, x_SD, [3, 1, 3])[0], expected)


def test_no_cache_is_kept_where_angles_depend_on_the_length_of_the_text() -> None:
    takes = {name: GQA(heads=2, head_dim=8, **options).takes_cache() for name, (options, _) in LONGER.items()}
    assert takes == {"linear": True, "dynamic": False, "long_rope": False}
    same = LongRope(short=SHORT, long=SHORT, original=4)
    assert GQA(heads=2, head_dim=8, long_rope=same).takes_cache()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**LONGER["linear"][0], "rotary_dim": 0}, "stretch with rotary_dim=0: nothing is rotated"),
        ({**LONGER["linear"][0], "yarn": Yarn(factor=2.0)}, "yarn and stretch both change the angles"),
        ({"long_rope": LongRope(short=SHORT, long=LONG, original=4), "rotary_dim": 4}, "expected 2 of each"),
        ({"stretch": Stretch(rule="dynamic", factor=2.0, original=4), "rotary_dim": 2}, "4 rotary dimensions or more"),
    ],
)
def test_ways_to_a_longer_context_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GQA(**{"heads": 2, "head_dim": 8, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stretch(rule="dynamic", factor=2.0), "rule=dynamic without original"),
        (lambda: Stretch(rule="linear", factor=2.0, original=4), "original=4 with rule=linear"),
        (lambda: LongRope(short=[1.0, 0.0], long=[1.0, 1.0], original=4), "must be numbers above 0"),
    ],
)
def test_options_of_a_longer_context_that_contradict_each_other(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
