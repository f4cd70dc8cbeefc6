"""The structure of decoder, encoder-decoder and LSTM models against loops, in fp64: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from agreement import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit import Batch, Source
from moekit.contracts import Model
from moekit.moe_layer import MoELayer, run_on_all
from moekit.spec.kinds import MoE, RouterSpec
from moekit_dispatchers.loop import Loop
from moekit_experts.ffn import Ffn
from moekit_experts.glu import Glu
from moekit_models.decoder import MTP, At, Decoder, DecoderMoE, OtherAttention
from moekit_models.decoder import naive as decoder_naive
from moekit_models.decoder.module import DecoderModel
from moekit_models.encoder_decoder import Cross, EncoderDecoder, StackMoE
from moekit_models.encoder_decoder import naive as encoder_decoder_naive
from moekit_models.encoder_decoder.module import EncoderDecoderModel
from moekit_models.gqa import GQA
from moekit_models.gqa import naive as gqa_naive
from moekit_models.lstm import LSTM
from moekit_models.lstm import naive as lstm_naive
from moekit_models.lstm.module import LSTMModel
from moekit_models.relative import Relative
from moekit_models.relative import naive as relative_naive
from moekit_objectives.causal_lm import CausalLM
from moekit_objectives.causal_lm import naive as loss_naive
from moekit_objectives.causal_lm.module import CausalLMObjective
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.topk import TopK

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

VOCAB, DIM, EPS = 7, 6, 1e-3
M = TypeVar("M", bound=Model)


def with_norms_away_from_1(model: M) -> M:
    """In fp64, with random norm weights, so that each one matters."""
    for parameter in model.double().parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def weights_of(model: Model, name: str) -> dict[str, Tensor]:
    """The parameters of one submodule, by their names in there."""
    return {k.removeprefix(f"{name}."): p for k, p in model.named_parameters() if k.startswith(f"{name}.")}


def feed_forward(model: Model) -> Callable[[str, Tensor], Tensor]:
    """Runs a model's feed-forward layer or mixture, by its name, on one token. These have references of their own."""

    def run(name: str, x_D: Tensor) -> Tensor:
        part = model.get_submodule(name)
        return part(x_D[None])[0][0] if isinstance(part, MoELayer) else run_on_all(part, x_D[None])[0]  # type: ignore[arg-type]

    return run


# ---- decoder --------------------------------------------------------------------------------------------------------


def decoder_of(*, tied: bool, ahead: int, **options: Any) -> DecoderModel:
    spec = Decoder(
        vocab=VOCAB,
        dim=DIM,
        depth=2,
        attention=GQA(heads=2, kv_heads=1, head_dim=4, rope_theta=50.0),
        ffn=Glu(hidden=5),
        moe=DecoderMoE(
            at=At(first=1),
            router=TopK(top_k=2, renormalize=True),
            experts=Glu(count=4, hidden=3),
            shared=Glu(count=1, hidden=3),
            dispatcher=Loop(),
        ),
        mtp=MTP(depth=ahead),
        tied=tied,
        init_std=0.6,
        norm_eps=EPS,
        **options,
    )
    return with_norms_away_from_1(DecoderModel(spec))


def predict(model: DecoderModel, tokens: list[int], ahead: int) -> list[dict[int, Tensor]]:
    def attend(name: str, x_SD: Tensor) -> Tensor:
        return gqa_naive.attend(x_SD, weights_of(model, name), heads=2, kv_heads=1, theta=50.0, eps=1e-6)

    weights, feed = dict(model.named_parameters()), feed_forward(model)
    return decoder_naive.predict(
        tokens, weights, attend, feed, depth=2, ahead=ahead, eps=EPS, norm_at=model.spec.norm_at
    )


NORMS: list[dict[str, Any]] = [{}, {"norm_at": "output"}, {"norm": "layer", "head_bias": True}]


@pytest.mark.parametrize("options", NORMS, ids=["input", "output", "layer norm and head bias"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ahead", [1, 3])
def test_decoder_predictions_are_at_the_right_positions(tied: bool, ahead: int, options: dict[str, Any]) -> None:
    if tied:
        options = {name: value for name, value in options.items() if name != "head_bias"}
    model = decoder_of(tied=tied, ahead=ahead, **options)
    tokens_BS = torch.randint(VOCAB, (2, 6))
    out = model(tokens_BS)
    assert [tuple(f.shape) for f in out.future] == [(2, 6 - k, VOCAB) for k in range(1, ahead + 1)]
    for b in range(2):
        expected = predict(model, tokens_BS[b].tolist(), ahead)
        for k, logits_BSV in enumerate([out.y, *out.future]):
            places = list(range(2 + k, 6 + 2))  # of places 1 to 6, position i predicts i + k + 1
            assert sorted(expected[k]) == places
            slow = torch.stack([expected[k][j] for j in places])
            torch.testing.assert_close(logits_BSV[b], slow, rtol=1e-10, atol=1e-11)


def test_layers_with_another_attention() -> None:
    """Every second layer attends to two positions alone, without sharing keys; also with a cache."""
    spec = Decoder(
        vocab=VOCAB,
        dim=DIM,
        depth=4,
        attention=GQA(heads=2, kv_heads=1, head_dim=4, rope_theta=50.0),
        other_attention=OtherAttention(at=At(every=2), attention=GQA(heads=2, head_dim=4, rope_theta=50.0, window=2)),
        ffn=Glu(hidden=5),
        mtp=MTP(depth=1),
        init_std=0.6,
        norm_eps=EPS,
    )
    model = with_norms_away_from_1(DecoderModel(spec))

    def attend(name: str, x_SD: Tensor) -> Tensor:
        other = name in ("blocks.1.attention", "blocks.3.attention")
        kv_heads, window = (2, 2) if other else (1, 0)
        weights = weights_of(model, name)
        return gqa_naive.attend(x_SD, weights, heads=2, kv_heads=kv_heads, theta=50.0, eps=1e-6, window=window)

    tokens_BS = torch.randint(VOCAB, (1, 6))
    out, weights = model(tokens_BS), dict(model.named_parameters())
    slow = decoder_naive.predict(tokens_BS[0].tolist(), weights, attend, feed_forward(model), depth=4, ahead=1, eps=EPS)
    fast = torch.cat([out.y[0], out.future[0][0]])
    assert_agree(fast, torch.stack([*slow[0].values(), *slow[1].values()]), weights)
    with torch.no_grad():
        cache, model = model.start_cache(), model.eval()
        assert cache is not None
        parts = [model.decode(part, cache).y for part in tokens_BS.split([2, 1, 3], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), out.y, rtol=1e-10, atol=1e-11)


def test_decoder_loss_with_multi_token_prediction() -> None:
    model = decoder_of(tied=False, ahead=2)
    text_BT = torch.randint(VOCAB, (2, 6))
    batch = Batch(text_BT[:, :-1], text_BT[:, 1:])
    loss = CausalLMObjective(CausalLM(mtp_weight=0.3))(model(batch.inputs), batch)
    predicted = [predict(model, text[:-1].tolist(), 2) for text in text_BT]
    probs = [
        torch.stack([torch.stack([p[k][j].softmax(-1) for j in sorted(p[k])]) for p in predicted]) for k in range(3)
    ]
    expected, leaves = loss_naive.mean_loss(text_BT, probs, 0.3), dict(model.named_parameters())
    assert_agree(loss.total / loss.count, expected, leaves, rtol=1e-12, atol=1e-14, looser=1000)


# ---- encoder-decoder ------------------------------------------------------------------------------------------------

RELATIVE = Relative(heads=2, head_dim=4, buckets=8, max_distance=7, scale=0.7)
ATTEND = partial(relative_naive.attend, heads=2, buckets=8, max_distance=7, scale=0.7)


def encoder_decoder_of(*, tied: bool = False, dense_too: bool = False, **options: Any) -> EncoderDecoderModel:
    moe = StackMoE(
        at=At(layers=[1]),
        router=TopK(top_k=2, renormalize=True),
        experts=Glu(count=4, hidden=3),
        dispatcher=Loop(),
        dense_too=dense_too,
    )
    base = {"attention": RELATIVE, "cross": Cross(heads=2, head_dim=5), "moe": moe}
    spec = EncoderDecoder(
        vocab=VOCAB,
        dim=DIM,
        depth=2,
        decoder_depth=3,
        ffn=Glu(hidden=5),
        tied=tied,
        scaled_head=tied,
        init_std=0.6,
        norm_eps=EPS,
        **{**base, **options},
    )
    return with_norms_away_from_1(EncoderDecoderModel(spec))


def translate(model: EncoderDecoderModel, source: list[int], target: list[int]) -> Tensor:
    def attend(name: str, x_SD: Tensor) -> Tensor:
        weights, stack = weights_of(model, name), name.partition(".")[0]
        table = getattr(model, stack).positions
        shared = {} if table is None else {"bias.weight": table.bias.weight}
        return ATTEND(x_SD, {**weights, **shared}, causal=stack == "decoder")

    return encoder_decoder_naive.predict(
        source, target, dict(model.named_parameters()), attend, feed_forward(model),
        depths=(2, 3), cross_heads=2, scaled_head=model.spec.scaled_head, eps=EPS, cross_scale=model.spec.cross.scale,
    )  # fmt: skip


@pytest.mark.parametrize("dense_too", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_encoder_decoder(tied: bool, dense_too: bool) -> None:
    model = encoder_decoder_of(tied=tied, dense_too=dense_too, source_embedding=dense_too)
    source, target = torch.randint(VOCAB, (2, 6)), torch.randint(VOCAB, (2, 5))
    fast = model(target, source=Source(source)).y
    slow = torch.stack([translate(model, s, t) for s, t in zip(source.tolist(), target.tolist(), strict=True)])
    assert_agree(fast, slow, dict(model.named_parameters()))


def test_encoder_decoder_as_t5_has_it_also_with_a_cache() -> None:
    """One table of positions for each stack, dot products as they are; other layers are mixtures in the decoder."""
    attention = replace(RELATIVE, shared=True)
    cross = Cross(heads=2, head_dim=5, scale=1.0)
    parts: dict[str, Any] = {"router": TopK(top_k=1), "experts": Glu(count=4, hidden=3), "dispatcher": Loop()}
    moe = StackMoE(at=At(layers=[0]), decoder_at=At(layers=[1, 2]), **parts)
    model = encoder_decoder_of(attention=attention, cross=cross, moe=moe)
    assert [name for name, _ in model.named_parameters() if ".bias." in name] == [
        "encoder.positions.bias.weight", "decoder.positions.bias.weight"
    ]  # fmt: skip
    source, target = torch.randint(VOCAB, (2, 6)), torch.randint(VOCAB, (2, 5))
    out = model(target, source=Source(source))
    assert list(out.reports) == ["encoder.blocks.0.ffn", "decoder.blocks.1.ffn", "decoder.blocks.2.ffn"]
    slow = torch.stack([translate(model, s, t) for s, t in zip(source.tolist(), target.tolist(), strict=True)])
    assert_agree(out.y, slow, dict(model.named_parameters()))
    with torch.no_grad():
        cache, model = model.start_cache(Source(source)), model.eval()
        assert cache is not None
        parts = [model.decode(part, cache).y for part in target.split([2, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), out.y, rtol=1e-10, atol=1e-11)


def test_encoder_decoder_with_sources_of_unequal_length() -> None:
    model = encoder_decoder_of()
    source, target = torch.randint(VOCAB, (2, 6)), torch.randint(VOCAB, (2, 5))
    valid = torch.arange(6) < torch.tensor([[3], [6]])
    fast = model.on(Batch(target, target, source=Source(source, valid))).y
    slow = torch.stack([translate(model, source[0, :3].tolist(), target[0].tolist()),
                        translate(model, source[1].tolist(), target[1].tolist())])  # fmt: skip
    assert_agree(fast, slow, dict(model.named_parameters()))


def test_dropout_affects_what_every_part_adds_and_never_the_residual() -> None:
    """As in T5: on embeddings, on each part's output, and on each stack's. ST-MoE's dense layer is one of the parts."""
    model = encoder_decoder_of(dense_too=True, dropout=0.5).train()
    inputs: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}  # of the dropouts outside of blocks
    in_blocks = {"encoder": 0, "decoder": 0}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        stack = name.partition(".")[0]

        def hook(_: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor:
            if "blocks" in name:  # drop everything: only the residual remains
                in_blocks[stack] += 1
                return torch.zeros_like(out)
            inputs[stack].append(given[0])
            return given[0]

        return hook

    for name, module in model.named_modules():
        if name.endswith("dropout"):
            module.register_forward_hook(hook_of(name))
    source, target = torch.randint(VOCAB, (2, 5)), torch.randint(VOCAB, (2, 3))
    model(target, source=Source(source))
    # attention and feed-forward of each block, a dense layer in addition to the mixture; cross-attention in the decoder
    assert in_blocks == {"encoder": 2 * 2 + 1, "decoder": 3 * 3 + 1}
    for name, tokens in (("encoder", source), ("decoder", target)):
        embedded, out = inputs[name]
        torch.testing.assert_close(embedded, model.embedding(tokens))
        torch.testing.assert_close(out, getattr(model, name).norm(embedded))


# ---- LSTM -----------------------------------------------------------------------------------------------------------

ROUTERS: dict[str, RouterSpec] = {
    "noisy": NoisyTopK(top_k=2, zero_init=False),
    "two": TopK(top_k=2, score_over="chosen"),
    "all": TopK(top_k=3, score_over="chosen"),
}


def lstm_of(*, dim: int, hidden: int, router: str) -> LSTMModel:
    """In evaluation mode, and so without noise. ``dense``: a feed-forward net instead of the mixture."""
    between: dict[str, Any] = {"ffn": Ffn(hidden=4)}
    if router != "dense":
        between = {"moe": MoE(router=ROUTERS[router], experts=Ffn(count=3, hidden=2), dispatcher=Loop())}
    model = LSTMModel(LSTM(vocab=VOCAB, dim=dim, hidden=hidden, dropout=0.5, init_std=0.7, **between)).double().eval()
    for layer in (model.lower, model.upper):
        nn.init.normal_(layer.bias_ih_l0)  # away from 0, so that it matters
    return model


@settings(max_examples=20, deadline=None)
@given(
    dim=st.integers(1, 3),
    more=st.integers(0, 2),
    router=st.sampled_from(["dense", *ROUTERS]),
    S=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_lstm(dim: int, more: int, router: str, S: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = lstm_of(dim=dim, hidden=dim + more, router=router)
    tokens_BS = torch.randint(VOCAB, (2, S))
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    top_k = {"dense": 0, "all": 3}.get(router, 2)
    slow = torch.stack([lstm_naive.predict(text.tolist(), leaves, top_k=top_k) for text in tokens_BS])
    assert_agree(model(tokens_BS).y, slow, leaves, rtol=1e-10, atol=1e-12, looser=100)


def test_the_reference_lstm_by_its_numbers() -> None:
    """One cell, all weights 1, all biases 0, input 1 from a state of zeros: i = f = o = sigmoid(1), g = tanh(1)."""
    w = {"lower.weight_ih_l0": torch.ones(4, 1), "lower.weight_hh_l0": torch.ones(4, 1)}
    w["lower.bias_ih_l0"] = torch.zeros(4)
    one, zero = torch.ones(()), torch.zeros(())
    (h,), (c,) = lstm_naive.step([one], ([zero], [zero]), w, "lower")
    assert c.item() == pytest.approx(0.731059 * 0.761594, abs=1e-6)
    assert h.item() == pytest.approx(0.731059 * 0.505577, abs=1e-6)  # tanh of .556770
