"""The cache: what it holds, how it grows, and that models decode with it to the logits of one pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import DIM, VOCAB, decoder, model_of, moe_of, pairs
from torch import Tensor, nn

from moekit import Cache, Component, MoekitError, Source, build, hookimpl, temporary
from moekit.contracts import Model, ModelOutput
from moekit.spec.kinds import AttentionSpec, MoE
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.loop import Loop
from moekit_experts.ffn import Ffn
from moekit_models.encoder_decoder import EncoderDecoder
from moekit_models.gqa import GQA
from moekit_models.lstm import LSTM
from moekit_models.mla import MLA
from moekit_models.relative import Relative
from moekit_models.yarn import Yarn

ATTENTION: dict[str, AttentionSpec] = {
    "mha": GQA(heads=3, head_dim=4),
    "gqa": GQA(heads=4, kv_heads=2, head_dim=6, qk_norm=True, yarn=Yarn(factor=4.0, original=8)),
    "mla": MLA(heads=3, query_rank=7, kv_rank=5, nope_dim=4, rope_dim=2, value_dim=9),
    "mla with yarn": MLA(heads=2, kv_rank=9, nope_dim=3, rope_dim=4, value_dim=2, yarn=Yarn(factor=4.0, original=8)),
    "relative": Relative(heads=2, head_dim=5, buckets=8, max_distance=6),
    "unscaled": Relative(heads=3, head_dim=4, scale=1.0),
}


def attention(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = build(ATTENTION[name], DIM)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.5)
    return module.double()


pieces = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("mha", 2 * 3 * 4), ("gqa", 2 * 2 * 6), ("mla", 5 + 2), ("mla with yarn", 9 + 4), ("relative", 2 * 2 * 5)],
)
def test_the_cache_holds_the_papers_numbers_for_each_token(name: str, numbers: int) -> None:
    """DeepSeek-V2, table 1: heads share keys and values in GQA; MLA keeps a latent and a rotary key for all heads."""
    module, cache = attention(name), Cache()
    with torch.no_grad():
        for S in (5, 1, 1):
            module(torch.randn(2, S, DIM, dtype=torch.float64), cache=cache)
            assert cache.numel() == 2 * cache.length * numbers
    assert cache.length == 7


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_pass_through_a_cache(name: str) -> None:
    module, cache = attention(name), Cache()
    x_BSD = torch.randn(2, 6, DIM, dtype=torch.float64, requires_grad=True)
    leaves, upstream = [x_BSD, *module.parameters()], torch.randn(2, 6, DIM, dtype=torch.float64)
    found = torch.cat([module(part, cache=cache) for part in x_BSD.split([3, 1, 2], dim=1)], dim=1)
    for a, b in zip(
        torch.autograd.grad((found * upstream).sum(), leaves),
        torch.autograd.grad((module(x_BSD) * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_cache_in_bf16_and_under_autocast_stays_near_fp32(name: str) -> None:
    x_BSD = torch.randn(2, 6, DIM)
    exact = attention(name).float()(x_BSD)
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        module, cache = attention(name).to(dtype), Cache()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = torch.cat([module(part, cache=cache) for part in x_BSD.to(dtype).split([4, 1, 1], dim=1)], dim=1)
        torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["mha", "mla", "relative"])
def test_attention_in_both_directions_refuses_a_cache(name: str) -> None:
    module = build(ATTENTION[name], DIM, False)
    with pytest.raises(ValueError, match="a cache is for causal attention"):
        module(torch.randn(1, 3, DIM), cache=Cache())


# ---- the cache itself ----


@given(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_a_cache_returns_the_rows_that_were_added(sizes: list[int]) -> None:
    cache = Cache()
    a, b = torch.randn(2, sum(sizes), 3), torch.randn(2, 4, sum(sizes), 5)
    end = 0
    for new_a, new_b in zip(a.split(sizes, dim=-2), b.split(sizes, dim=-2), strict=True):
        all_a, all_b = cache.extend(new_a, new_b)
        end += new_a.shape[-2]
        assert torch.equal(all_a, a[:, :end]) and torch.equal(all_b, b[..., :end, :])
        assert cache.length == end and cache.numel() == end * (2 * 3 + 2 * 4 * 5)


def test_another_token_copies_no_earlier_one() -> None:
    cache = Cache()
    (first,) = cache.extend(torch.randn(1, 5, 3))
    kept = [cache.extend(torch.randn(1, 1, 3))[0] for _ in range(200)]
    places = [rows.data_ptr() for rows in (first, *kept)]
    assert len(set(places)) < 8  # memory is allocated in growing blocks
    assert torch.equal(kept[-1][:, :5], first)


def test_rows_of_another_shape_are_refused() -> None:
    cache = Cache()
    cache.extend(torch.zeros(2, 4, 3), torch.zeros(2, 4, 6))
    for rows in (
        (torch.zeros(2, 1, 3),),
        (torch.zeros(1, 1, 3), torch.zeros(1, 1, 6)),
        (torch.zeros(2, 1, 3), torch.zeros(2, 2, 6)),
        (),
    ):
        with pytest.raises(ValueError, match=r"cannot be added; expected \[2, S, 3\], \[2, S, 6\]"):
            cache.extend(*rows)
    assert cache.length == 4
    with pytest.raises(ValueError, match=r"rows of \[2, 1, 3\], \[2, 2, 6\] cannot be added; expected rows"):
        Cache().extend(torch.zeros(2, 1, 3), torch.zeros(2, 2, 6))


def test_a_copy_of_a_cache_is_independent() -> None:
    """For two texts with the same beginning."""
    module, cache = attention("mla"), Cache()
    x_BSD = torch.randn(1, 6, DIM, dtype=torch.float64)
    with torch.no_grad():
        module(x_BSD[:, :4], cache=cache)
        other = copy.deepcopy(cache)
        module(torch.randn(1, 2, DIM, dtype=torch.float64), cache=other)
        found = module(x_BSD[:, 4:], cache=cache)
        torch.testing.assert_close(found, module(x_BSD)[:, 4:], rtol=1e-11, atol=1e-12)


# ---- models ----


LSTM_MOE = LSTM(vocab=VOCAB, dim=DIM, moe=moe_of(MoE, Loop()), init_std=0.4)
MODELS = {
    **{f"decoder, {name}": decoder(attention=spec) for name, spec in ATTENTION.items()},
    "decoder, loop": decoder(dispatcher=Loop()),
    "decoder, slots for all": decoder(dispatcher=Capacity(factor=100.0)),
    "decoder, recompute": replace(decoder(), recompute="blocks"),
    **{f"pairs, {name}": pairs(attention=ATTENTION[name]) for name in ("gqa", "mla", "relative")},
    "pairs, tied": replace(pairs(), tied=True, moe=None),
    "lstm": LSTM_MOE,
    "lstm, projected": replace(LSTM_MOE, hidden=DIM + 3),
    "lstm, dense": LSTM(vocab=VOCAB, dim=DIM, ffn=Ffn(hidden=5)),
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def source_of(spec: Any, B: int) -> Source | None:
    if not isinstance(spec, EncoderDecoder):
        return None
    lengths = torch.tensor([[6], [3], [5]])[:B]
    return Source(torch.randint(VOCAB, (B, 6)), torch.arange(6) < lengths)


def in_one_pass(model: Model, tokens: Tensor, source: Source | None) -> Tensor:
    return model(tokens).y if source is None else model.given(source)(tokens, None).y


def decode_in_parts(model: Model, parts: tuple[Tensor, ...], source: Source | None) -> list[ModelOutput]:
    cache = model.start_cache(source)
    assert cache is not None
    return [model.decode(part, cache) for part in parts]


@pytest.mark.parametrize("name", MODELS)
@given(sizes=pieces, B=st.integers(1, 3))
@settings(max_examples=6, deadline=None)
def test_logits_decoded_in_parts_are_those_of_one_pass(name: str, sizes: list[int], B: int) -> None:
    spec = MODELS[name]
    model, source = model_of(spec), source_of(spec, B)
    tokens = torch.randint(VOCAB, (B, sum(sizes)))
    with torch.no_grad():
        found = torch.cat([out.y for out in decode_in_parts(model, tokens.split(sizes, dim=1), source)], dim=1)
        torch.testing.assert_close(found, in_one_pass(model, tokens, source), rtol=1e-9, atol=1e-10)


def test_reports_cover_the_new_positions_alone() -> None:
    model, tokens = model_of(decoder()), torch.randint(VOCAB, (2, 5))
    with torch.no_grad():
        outputs = decode_in_parts(model, (tokens[:, :4], tokens[:, 4:]), None)
        whole = model(tokens).reports
    for out, S in zip(outputs, (4, 1), strict=True):
        assert list(out.reports) == ["blocks.1.ffn", "blocks.2.ffn"]
        assert all(int(report.load_E.sum()) == 2 * S * 2 for report in out.reports.values())
    for name, report in whole.items():
        assert torch.equal(sum(out.reports[name].load_E for out in outputs), report.load_E)
    written = decode_in_parts(model_of(pairs()), (tokens,), source_of(pairs(), 2))[0]
    assert list(written.reports) == ["decoder.blocks.1.ffn"]  # the encoder ran before


def test_a_finished_target_uses_no_capacity() -> None:
    model, spec = model_of(pairs(dispatcher=Capacity(factor=0.5))), pairs()
    cache = model.start_cache(source_of(spec, 3))
    assert cache is not None
    with torch.no_grad():
        model.decode(torch.randint(VOCAB, (3, 1)), cache)
        out = model.decode(torch.randint(VOCAB, (3, 1)), cache, valid=torch.tensor([[True], [False], [True]]))
    (report,) = out.reports.values()
    assert int(report.routing.num_valid()) == 2 and int(report.load_E.sum()) == 4


def test_a_source_is_encoded_once() -> None:
    model, spec = model_of(pairs()), pairs()
    calls: list[int] = []
    model.get_submodule("encoder").register_forward_hook(lambda *_: calls.append(1))
    cross = model.get_submodule("decoder.blocks.0.cross_attention.k")
    cross.register_forward_hook(lambda *_: calls.append(2))
    with torch.no_grad():
        decode_in_parts(model, torch.randint(VOCAB, (2, 4)).split(1, dim=1), source_of(spec, 2))
    assert calls == [1, 2]


def test_a_model_without_a_cache_refuses_to_decode_with_one() -> None:
    class Plain(Model):
        def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
            return ModelOutput(y=inputs)

    assert Plain().start_cache() is None
    with pytest.raises(MoekitError, match=r"Plain has no cache to decode with: start_cache\(\) returns None"):
        Plain().decode(torch.zeros(1, 1), Cache())
    with pytest.raises(MoekitError, match=r"needs a source.*start_cache\(source\)"):
        model_of(pairs()).start_cache()


class Sums(AttentionSpec):
    """An attention without support for a cache."""


class SumsAttention(nn.Module):
    def __init__(self, spec: Sums, dim: int, causal: bool = True) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, dim)

    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None) -> Tensor:
        y: Tensor = self.weight(x_BSD.cumsum(1))
        return y


class SumsPlugin:
    MOEKIT_API = 2

    @staticmethod
    @hookimpl
    def moekit_components() -> list[Component]:
        return [Component(name="sums", spec=Sums, target=SumsAttention, summary="sums")]


def test_an_attention_without_a_cache_runs_in_one_pass() -> None:
    with temporary(SumsPlugin):
        for spec in (decoder(attention=Sums()), pairs(attention=Sums())):
            model = model_of(spec)
            assert model.start_cache(source_of(spec, 2)) is None
            with pytest.raises(MoekitError, match="has no cache to decode with"):
                model.decode(torch.zeros(1, 1, dtype=torch.int64), Cache())
            out = in_one_pass(model, torch.randint(VOCAB, (2, 5)), source_of(spec, 2))
            assert out.shape == (2, 5, VOCAB)
