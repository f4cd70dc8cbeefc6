"""The decoder: which layers are mixtures, outputs, padding, tying, recomputation, initial weights, refused options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import Batchwise
from torch import Tensor

from moekit.contracts import Batch, ModelOutput
from moekit.moe_layer import MoELayer
from moekit.spec.kinds import MoE, RouterSpec
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sign_bias import SignBias
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_models.decoder import MTP, At, Decoder, DecoderMoE, OtherAttention
from moekit_models.decoder.module import DecoderModel
from moekit_models.gqa import GQA, Temperature
from moekit_models.mla import MLA
from moekit_models.norms import LayerNorm
from moekit_models.relative import Relative
from moekit_models.stretch import Stretch
from moekit_routers.topk import TopK

VOCAB = 11


def moe_of(at: At, **changes: Any) -> DecoderMoE:
    parts: dict[str, Any] = {
        "router": TopK(top_k=2, score="sigmoid", renormalize=True),
        "experts": Glu(count=6, hidden=4),
        "shared": Glu(count=1, hidden=4),
        "dispatcher": Grouped(),
        "balancers": {"bias": SignBias(rate=0.1), "load": LoadBalance(weight=0.1)},
    }
    return DecoderMoE(at=at, **{**parts, **changes})


def spec_of(**changes: Any) -> Decoder:
    base: dict[str, Any] = {
        "vocab": VOCAB,
        "dim": 16,
        "depth": 3,
        "attention": GQA(heads=2, head_dim=8),
        "ffn": Glu(hidden=12),
        "moe": moe_of(At(first=1)),
        "mtp": MTP(depth=2),
        "init_std": 0.3,
    }
    return Decoder(**{**base, **changes})


def tokens(B: int = 2, S: int = 8) -> Tensor:
    return torch.randint(VOCAB, (B, S))


@pytest.mark.parametrize(
    ("at", "depth", "expected"),
    [
        (At(first=1), 4, (1, 2, 3)),
        (At(first=0), 2, (0, 1)),
        (At(every=2), 6, (1, 3, 5)),
        (At(every=1), 3, (0, 1, 2)),
        (At(every=3), 5, (2,)),
        (At(layers=[3, 1]), 4, (1, 3)),
    ],
)
def test_the_named_layers_are_mixtures(at: At, depth: int, expected: tuple[int, ...]) -> None:
    spec = spec_of(depth=depth, moe=moe_of(at), mtp=None)
    assert spec.moe_layers == expected
    model = DecoderModel(spec)
    assert tuple(i for i, block in enumerate(model.blocks) if isinstance(block.ffn, MoELayer)) == expected
    assert list(model(tokens()).reports) == [f"blocks.{i}.ffn" for i in expected]


def test_reports_have_the_paths_of_their_layers() -> None:
    model = DecoderModel(spec_of())
    out = model(tokens())
    assert out.y.shape == (2, 8, VOCAB)
    assert list(out.reports) == ["blocks.1.ffn", "blocks.2.ffn", "mtp.0.block.ffn", "mtp.1.block.ffn"]
    for name, report in out.reports.items():
        assert isinstance(model.get_submodule(name), MoELayer)
        assert set(report.losses) == {"load"}
    loads = [int(report.load_E.sum()) for report in out.reports.values()]
    assert loads == [2 * 2 * 8, 2 * 2 * 8, 2 * 2 * 7, 2 * 2 * 6]  # top_k · B · positions


def test_tokens_further_ahead_are_predicted_only_in_training() -> None:
    model = DecoderModel(spec_of()).eval()
    out = model(tokens())
    assert out.future == ()
    assert list(out.reports) == ["blocks.1.ffn", "blocks.2.ffn"]


def test_a_short_text_has_fewer_predictions_ahead() -> None:
    model = DecoderModel(spec_of())
    assert [tuple(f.shape) for f in model(tokens(S=2)).future] == [(2, 1, VOCAB)]
    assert model(tokens(S=1)).future == ()


def test_blocks_of_multi_token_prediction_are_like_the_last_layer() -> None:
    dense_last = DecoderModel(spec_of(moe=moe_of(At(layers=[0]))))
    assert list(dense_last(tokens()).reports) == ["blocks.0.ffn"]
    assert len(dense_last(tokens()).future) == 2


def test_padding_changes_neither_logits_nor_reports_of_valid_positions() -> None:
    model = DecoderModel(spec_of()).double()
    inputs = tokens(B=1)
    valid = (torch.arange(8) < 5)[None]
    padded, alone = model(inputs, valid=valid), model(inputs[:, :5])
    torch.testing.assert_close(padded.y[:, :5], alone.y, rtol=0, atol=1e-12)
    for name, report in alone.reports.items():
        assert torch.equal(padded.reports[name].load_E, report.load_E)
        torch.testing.assert_close(padded.reports[name].loss(), report.loss(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_the_input_embedding(tied: bool) -> None:
    model = DecoderModel(spec_of(tied=tied))
    embedding, head = model.embeddings()
    assert (embedding is head) == tied
    names = [name for name, _ in model.named_parameters()]
    assert ("head.weight" in names) != tied
    model(tokens()).y.sum().backward()
    assert head is not None and head.grad is not None and (head.grad != 0).any(-1).all()


def test_extra_parts_share_no_parameter_with_the_model() -> None:
    model = DecoderModel(spec_of())
    (extra,) = model.extra_parts().values()
    inside = {id(p) for p in extra.parameters()}
    assert inside and not inside & {id(p) for name, p in model.named_parameters() if not name.startswith("mtp.")}
    assert DecoderModel(spec_of(mtp=None)).extra_parts() == {}


def test_initial_weights_have_the_given_deviation() -> None:
    model = DecoderModel(spec_of(dim=64, attention=GQA(heads=8, head_dim=8), ffn=Glu(hidden=96), init_std=0.006))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.006, rel=5 / (2 * parameter.numel()) ** 0.5), name


def losses(model: DecoderModel, inputs: Tensor) -> tuple[ModelOutput, Tensor]:
    out = model(inputs)
    total = out.y.square().sum() + sum(f.square().sum() for f in out.future)
    return out, total + sum(report.loss() for report in out.reports.values())


@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize("recompute", ["experts", "blocks"])
def test_recomputation_changes_no_number(recompute: str, jitter: float) -> None:
    router = TopK(top_k=2, score="sigmoid", input_jitter=jitter)
    spec = spec_of(moe=moe_of(At(first=1), router=router))
    kept, again = DecoderModel(spec), DecoderModel(replace(spec, recompute=recompute))
    again.load_state_dict(kept.state_dict())
    inputs = tokens()
    calls = {"kept": 0, "again": 0}
    for name, model in (("kept", kept), ("again", again)):
        part = model.blocks[1].attention if recompute == "blocks" else model.blocks[1].ffn.dispatcher
        part.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    results = []
    for model in (kept, again):
        torch.manual_seed(1)
        out, loss = losses(model, inputs)
        loss.backward()
        results.append((out, loss))
    assert calls == {"kept": 1, "again": 2}  # backward runs the part again
    (a, loss_a), (b, loss_b) = results
    assert torch.equal(loss_a, loss_b)
    assert list(a.reports) == list(b.reports)
    for name in a.reports:
        assert torch.equal(a.reports[name].load_E, b.reports[name].load_E)
        assert torch.equal(a.reports[name].loss(), b.reports[name].loss())
    for (name, p), q in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        assert torch.equal(p.grad, q.grad), name
    for p, q in zip(kept.buffers(), again.buffers(), strict=True):
        assert torch.equal(p, q)  # forward changes no state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give exactly one of first, every, layers \(given: none\)"),
        ({"first": 1, "every": 2}, r"give exactly one of first, every, layers \(given: first, every\)"),
        ({"layers": [1, 1]}, r"layers=\[1, 1\] must be different numbers from 0"),
        ({"layers": [-1]}, r"layers=\[-1\] must be different numbers from 0"),
        ({"every": 0}, r"every=0 is out of range \(>= 1\)"),
    ],
)
def test_mixture_layers_are_named_in_exactly_one_way(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        At(**options)


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


ATTENTIONS = {
    "gqa": GQA(heads=2, head_dim=8),
    "window": GQA(heads=2, head_dim=8, window=3, sinks=True),
    "mla": MLA(heads=2, query_rank=8, kv_rank=8, nope_dim=4, rope_dim=4, value_dim=4),
}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_a_document_in_a_window_gets_the_logits_that_it_gets_alone(attention: str, recompute: Any) -> None:
    """And the gradients; every token counts once in the loads; later tokens are predicted within a document."""
    balancers = {"bias": SignBias(rate=0.1)}  # a balance loss is a mean over all tokens of a call
    model = DecoderModel(
        spec_of(attention=ATTENTIONS[attention], moe=moe_of(At(first=1), balancers=balancers), recompute=recompute)
    ).double()
    inputs, lengths = tokens(S=9), ((4, 5), (1, 8))
    document = torch.tensor([[0] * a + [1] * b for a, b in lengths])
    packed = model.on(Batch(inputs, inputs, document=document))
    for b, (first, _) in enumerate(lengths):
        for own in (slice(0, first), slice(first, 9)):
            alone = model(inputs[b : b + 1, own])
            torch.testing.assert_close(packed.y[b : b + 1, own], alone.y, rtol=1e-9, atol=1e-9)
            for k, (together, apart) in enumerate(zip(packed.future, alone.future, strict=False), start=1):
                mine = together[b : b + 1, own][:, : own.stop - own.start - k]
                torch.testing.assert_close(mine, apart, rtol=1e-9, atol=1e-9)
    loads = {name: int(report.load_E.sum()) for name, report in packed.reports.items()}
    within = [int((document[:, :-k] == document[:, k:]).sum()) for k in (1, 2)]
    assert loads == {
        "blocks.1.ffn": 2 * 18, "blocks.2.ffn": 2 * 18,
        "mtp.0.block.ffn": 2 * within[0], "mtp.1.block.ffn": 2 * within[1],
    }  # fmt: skip
    joined = model(inputs)
    assert not torch.allclose(joined.y[0, 4:], packed.y[0, 4:])


@pytest.mark.parametrize(
    "options",
    [{"chunk": 4}, {"temperature": Temperature()}, {"stretch": Stretch(rule="dynamic", factor=2.0, original=4)}],
    ids=lambda options: next(iter(options)),
)
def test_documents_are_not_kept_apart_where_positions_count_from_the_start_of_the_text(options: dict[str, Any]) -> None:
    attention = replace(ATTENTIONS["gqa"], **options)
    assert spec_of(attention=ATTENTIONS["gqa"]).takes_documents() and not spec_of(attention=attention).takes_documents()


def test_a_decoder_takes_documents_if_all_its_attention_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec_of().takes_documents()
    monkeypatch.setattr(GQA, "takes_documents", False)
    other = OtherAttention(at=At(first=2), attention=ATTENTIONS["gqa"])
    assert not spec_of(attention=ATTENTIONS["mla"], other_attention=other).takes_documents()
    assert spec_of(attention=ATTENTIONS["mla"]).takes_documents()


def test_two_initialisations_are_refused() -> None:
    assert spec_of(init_std=0.1).init_scale is None
    with pytest.raises(ValueError, match=r"init_std=0.1 and init_scale=0.5 both initialise weights: set one"):
        spec_of(init_std=0.1, init_scale=0.5)


def test_a_router_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"router Batchwise would leak later tokens: .* use topk or noisy_topk"):
        spec_of(moe=moe_of(At(first=1), router=Batchwise(), balancers={}))


def test_a_dense_layer_with_several_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ffn\.count=2 must be 1"):
        spec_of(ffn=Glu(count=2, hidden=4))


def test_a_decoders_mixture_is_checked_like_any() -> None:
    assert issubclass(DecoderMoE, MoE)
    with pytest.raises(ValueError, match="gives a selection bias"):
        moe_of(At(first=1), router=NoBias(), balancers={"bias": SignBias(rate=0.1)})


class NoBias(RouterSpec):
    """A router that ignores a selection bias."""

    takes_bias: ClassVar[bool] = False


def test_a_tied_head_has_no_bias() -> None:
    with pytest.raises(ValueError, match="head_bias with tied: a tied head is the input embedding"):
        spec_of(tied=True, head_bias=True)


def test_a_layer_norm_stays_in_the_dtype_of_its_input() -> None:
    norm = LayerNorm(8)
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, torch.nn.functional.layer_norm(x.float(), (8,)).bfloat16())
    assert norm(x.double()).dtype == torch.float64


def test_a_decoder_has_no_table_of_positions_for_its_layers_to_share() -> None:
    attention = Relative(heads=2, head_dim=8, shared=True)
    with pytest.raises(ValueError, match=r"attention\.shared is for the stacks of the model encoder_decoder"):
        spec_of(attention=attention)
