"""The encoder-decoder: refused options, what logits depend on, reports, initial weights, parameter counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import Batchwise, Crowding
from torch import Tensor

from moekit import Batch, MoekitError, Source
from moekit.params import count_parameters
from moekit.spec.kinds import AttentionSpec
from moekit_balancers.load_balance import LoadBalance
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.soft import Soft
from moekit_experts.ffn import Ffn
from moekit_experts.glu import Glu
from moekit_models.encoder_decoder import At, Cross, EncoderDecoder, StackMoE
from moekit_models.encoder_decoder.module import EncoderDecoderModel
from moekit_models.gqa import GQA
from moekit_models.mla import MLA
from moekit_models.relative import Relative
from moekit_routers.topk import TopK

VOCAB = 11


def moe_of(**changes: Any) -> StackMoE:
    parts: dict[str, Any] = {
        "at": At(every=2),
        "router": TopK(top_k=1),
        "experts": Glu(count=4, hidden=6),
        "dispatcher": Grouped(),
        "balancers": {"load": LoadBalance()},
    }
    return StackMoE(**{**parts, **changes})


def spec_of(**changes: Any) -> EncoderDecoder:
    parts: dict[str, Any] = {
        "attention": Relative(heads=2, head_dim=5),
        "cross": Cross(heads=2, head_dim=4),
        "ffn": Glu(hidden=12),
        "moe": moe_of(),
    }
    return EncoderDecoder(vocab=VOCAB, dim=8, depth=2, **{**parts, **changes})


def model_of(**changes: Any) -> EncoderDecoderModel:
    return EncoderDecoderModel(spec_of(init_std=0.5, **changes)).double()


def pair(B: int = 2) -> tuple[Tensor, Source]:
    source = torch.randint(VOCAB, (B, 7))
    return torch.randint(VOCAB, (B, 6)), Source(source, torch.ones_like(source, dtype=torch.bool))


def test_parts_that_see_later_tokens_are_refused_in_the_decoder() -> None:
    with pytest.raises(ValueError, match=r"dispatcher Crowding would leak .* in the decoder.*moe.encoder_dispatcher"):
        spec_of(moe=moe_of(dispatcher=Crowding()))
    with pytest.raises(ValueError, match="router Batchwise would leak later tokens in the decoder"):
        spec_of(moe=moe_of(router=Batchwise()))


def test_the_encoder_may_have_a_dispatcher_that_is_not_causal() -> None:
    spec = spec_of(moe=moe_of(encoder_dispatcher=Crowding()))
    assert spec.moe is not None
    assert spec.moe.layer(encoder=True).dispatcher == Crowding()
    assert spec.moe.layer(encoder=False).dispatcher == Grouped()
    model = model_of(moe=moe_of(encoder_dispatcher=Loop()))
    kinds = [type(model.get_submodule(f"{stack}.blocks.1.ffn.dispatcher")).__name__ for stack in ("encoder", "decoder")]
    assert kinds == ["LoopDispatcher", "GroupedDispatcher"]


def test_batch_prioritised_routing_is_allowed_in_the_encoder_alone() -> None:
    by_affinity = Capacity(factor=0.5, order="affinity")
    with pytest.raises(ValueError, match="dispatcher Capacity would leak later tokens in the decoder"):
        spec_of(moe=moe_of(dispatcher=by_affinity))
    model = model_of(moe=moe_of(dispatcher=Capacity(factor=0.5), encoder_dispatcher=by_affinity))
    x_BSD = torch.randn(1, 8, 8, dtype=torch.float64)
    permuted = torch.randperm(8)
    encoder, decoder = (model.get_submodule(f"{stack}.blocks.1.ffn") for stack in ("encoder", "decoder"))
    # by affinity the same tokens are kept in any order; by position the first ones are
    torch.testing.assert_close(encoder(x_BSD[:, permuted])[0], encoder(x_BSD)[0][:, permuted])
    first = decoder(x_BSD)[0][:, :2]
    torch.testing.assert_close(decoder(x_BSD[:, [0, 1, 7, 6, 5, 4, 3, 2]])[0][:, :2], first)
    assert int(encoder(x_BSD)[1].dropped) > 0 and int(decoder(x_BSD)[1].dropped) > 0


def test_the_encoders_dispatcher_must_fit_too() -> None:
    with pytest.raises(ValueError, match="encoder_dispatcher: TopK routes by 'token_choice', but dispatcher Soft"):
        moe_of(encoder_dispatcher=Soft())
    with pytest.raises(ValueError, match="top_k=9 is more than the 4 experts") as found:
        moe_of(encoder_dispatcher=Loop(), router=TopK(top_k=9))
    assert "encoder_dispatcher" not in str(found.value)  # reported once


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": moe_of(at=At(layers=[2]))}, r"moe.at names \[2\], but the encoder has layers 0 to 1"),
        ({"moe": moe_of(decoder_at=At(layers=[9]))}, r"moe.decoder_at names \[9\], but the decoder has layers"),
        ({"decoder_depth": 1}, "moe.at names no layer, but the decoder has layers 0 to 0"),
        ({"ffn": Glu(count=2, hidden=4)}, r"ffn\.count=2 must be 1"),
    ],
)
def test_missing_layers_and_several_dense_experts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**changes)


def test_a_missing_source_is_refused() -> None:
    model = model_of()
    tokens, _ = pair()
    for call in (lambda: model(tokens), lambda: model.on(Batch(tokens, tokens))):
        with pytest.raises(MoekitError, match="an encoder-decoder needs a source"):
            call()


ATTENTION: dict[str, AttentionSpec] = {
    "relative": Relative(heads=2, head_dim=5),
    "gqa": GQA(heads=2, kv_heads=1, head_dim=4),
    "mla": MLA(heads=2, kv_rank=4, nope_dim=4, rope_dim=2, value_dim=4),
}


@pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION)
def test_every_source_token_affects_every_logit(attention: AttentionSpec) -> None:
    model = model_of(attention=attention, moe=moe_of(dense_too=True))
    tokens, source = pair()
    before = model(tokens, source=source).y
    for position in range(7):
        other = source.tokens.clone()
        other[:, position] = (other[:, position] + 1) % VOCAB
        assert (model(tokens, source=Source(other)).y != before).any(-1).all()


def test_an_empty_source_gives_finite_logits_and_gradients() -> None:
    model = model_of()
    tokens, source = pair()
    nothing = Source(source.tokens, torch.tensor([[False], [True]]).expand(2, 7))
    out = model(tokens, source=nothing)
    out.y.sum().backward()
    assert out.y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_reports_name_their_layers_and_which_are_the_encoders() -> None:
    tokens, source = pair()
    out = model_of(decoder_depth=4)(tokens, source=source)
    assert list(out.reports) == ["encoder.blocks.1.ffn", "decoder.blocks.1.ffn", "decoder.blocks.3.ffn"]
    assert out.of_source == {"encoder.blocks.1.ffn"}
    assert [int(r.load_E.sum()) for r in out.reports.values()] == [14, 12, 12]


def test_a_source_is_encoded_once_for_many_targets() -> None:
    model, calls = model_of(), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    tokens, source = pair()
    write = model.given(source)
    for length in (1, 3, 6):
        write(tokens[:, :length], None)
    assert len(calls) == 1


def test_the_encoder_decoder_compiles_as_one_graph() -> None:
    spec = spec_of(moe=moe_of(at=At(first=0), dispatcher=Capacity()), init_std=0.5)
    model = EncoderDecoderModel(replace(spec, depth=1)).double().eval()
    tokens, source = pair()
    assert source.valid is not None
    torch.compiler.reset()
    compiled = torch.compile(
        lambda tokens, source, valid: model(tokens, source=Source(source, valid)).y, backend="aot_eager", fullgraph=True
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens, source.tokens, source.valid), model(tokens, source=source).y)
    torch.compiler.reset()


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_of_the_decoder_is_the_input_embedding(tied: bool) -> None:
    embedding, head = model_of(tied=tied).embeddings()
    assert (embedding is head) == tied


def test_dropout_applies_in_training_alone() -> None:
    model = model_of(dropout=0.4)
    tokens, source = pair()
    still = model_of()
    still.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(tokens, source=source).y, still(tokens, source=source).y)
    model.train()
    assert not torch.allclose(model(tokens, source=source).y, model(tokens, source=source).y)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("recompute", ["experts", "blocks"])
def test_recomputation_changes_no_gradient(recompute: str, dropout: float) -> None:
    kept = model_of(dropout=dropout)
    again = model_of(dropout=dropout, recompute=recompute)
    again.load_state_dict(kept.state_dict())
    tokens, source = pair()
    calls = {"kept": 0, "again": 0}
    for name, model in (("kept", kept), ("again", again)):
        for stack in ("encoder", "decoder"):
            part = model.get_submodule(f"{stack}.blocks.1.{'attention' if recompute == 'blocks' else 'ffn.router'}")
            part.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    for model in (kept, again):
        torch.manual_seed(1)
        out = model(tokens, source=source)
        (out.y.square().sum() + sum(r.loss() for r in out.reports.values())).backward()
    assert calls == {"kept": 2, "again": 4}
    for (name, p), q in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", [{"init_std": 0.006}, {"init_scale": 0.1}])
def test_the_token_embedding_may_have_a_deviation_of_its_own(how: dict[str, float]) -> None:
    spec = replace(spec_of(**how), vocab=400, dim=16, moe=None)
    models = []
    for one in (spec, replace(spec, embedding_std=1.0)):
        torch.manual_seed(0)
        models.append(EncoderDecoderModel(one))
    usual, own = models
    assert float(own.embedding.weight.detach().std()) == pytest.approx(1.0, rel=0.03)
    assert float(usual.embedding.weight.detach().std()) < 0.3
    assert torch.equal(usual.head.weight, own.head.weight)  # type: ignore[union-attr] # a weight of another name


@pytest.mark.parametrize("scale", [None, 0.1])
def test_initial_weights_have_the_deviation_of_std_or_scale(scale: float | None) -> None:
    how = {"init_std": 0.006} if scale is None else {"init_scale": scale}
    spec = spec_of(cross=Cross(heads=4, head_dim=16), ffn=Ffn(hidden=96), **how)
    model = EncoderDecoderModel(replace(spec, dim=64, moe=None))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 500:
            inputs = 1 if name == "embedding.weight" else parameter.shape[-1]
            # a normal distribution truncated at two standard deviations has .88 of the deviation
            expected = 0.006 if scale is None else 0.88 * (scale / inputs) ** 0.5
            assert parameter.std().item() == pytest.approx(expected, rel=0.15), name


def test_parameters_are_counted_by_part() -> None:
    count = count_parameters(spec_of(moe=moe_of(dense_too=True), tied=True))
    D = 8
    attention = 4 * D * 10 + 32 * 2  # q, k, v, out; a table of 32 buckets for 2 heads
    assert count.parts["attention"] == 4 * attention + 2 * 4 * D * 8
    assert count.parts["dense ffn"] == (2 + 2) * 3 * D * 12
    assert count.parts["routed experts"] == 2 * 4 * 3 * D * 6
    assert count.parts["routers"] == 2 * 4 * D
    assert count.parts["norms"] == (2 * 2 + 2 * 3 + 2 + 2) * D
    assert count.parts["embedding"] == VOCAB * D
    assert count.total == sum(count.parts.values()) and count.parts["other"] == count.parts["head"] == 0
    assert count.total - count.active() == 2 * 3 * 3 * D * 6  # three of four experts are idle


@pytest.mark.parametrize("dense_too", [False, True])
def test_the_dense_baseline_has_as_many_multiply_adds(dense_too: bool) -> None:
    moe = moe_of(router=TopK(top_k=2), experts=Glu(count=4, hidden=40), shared=Glu(hidden=20), dense_too=dense_too)
    baseline = spec_of(moe=moe, ffn=Glu(hidden=50), decoder_depth=6).dense_baseline()
    # 8 layers, 4 of them mixtures of 2 · 40 + 20
    assert baseline is not None and baseline.moe is None and baseline.decoder_depth == 6
    assert baseline.ffn == Glu(hidden=(4 * (100 + (50 if dense_too else 0)) + 4 * 50) // 8)
    work = spec_of(moe=moe, ffn=Glu(hidden=50), decoder_depth=6).feed_forward_work()
    assert baseline.feed_forward_work() == work
    assert baseline.dense_baseline() is None
