"""Relative position biases and the encoder-decoder's wiring against loops, in fp64: outputs and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from moekit import Batch, Source
from moekit.layer import MoELayer, run_on_all
from moekit_dispatchers.loop import Loop
from moekit_experts.glu import Glu
from moekit_models.encoder_decoder import At, Cross, EncoderDecoder, StackMoE, naive
from moekit_models.encoder_decoder.module import EncoderDecoderModel
from moekit_models.relative import Relative
from moekit_models.relative import naive as relative_naive
from moekit_models.relative.module import RelativeAttention
from moekit_routers.topk import TopK

VOCAB, DIM, EPS = 7, 6, 1e-3
RELATIVE = Relative(heads=2, head_dim=4, buckets=8, max_distance=7, scale=0.7)
ATTEND = partial(relative_naive.attend, heads=2, buckets=8, max_distance=7, scale=0.7)


def agree(fast: Tensor, slow: Tensor, leaves: dict[str, Tensor]) -> None:
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-11)
    upstream = torch.randn_like(fast)
    for name, a, b in zip(
        leaves,
        torch.autograd.grad((fast * upstream).sum(), list(leaves.values())),
        torch.autograd.grad((slow * upstream).sum(), list(leaves.values())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("length", [1, 11])
@pytest.mark.parametrize("causal", [True, False])
def test_relative_attention(causal: bool, length: int) -> None:
    module = RelativeAttention(RELATIVE, DIM, causal).double()
    x_BSD = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    weights = dict(module.named_parameters())
    slow = torch.stack([ATTEND(x_SD, weights, causal=causal) for x_SD in x_BSD])
    agree(module(x_BSD), slow, {"x": x_BSD, **weights})


@pytest.mark.parametrize("length", [1, 4])
def test_relative_attention_beside_padding(length: int) -> None:
    module = RelativeAttention(RELATIVE, DIM, causal=False).double()
    x_BSD = torch.randn(1, 7, DIM, dtype=torch.float64, requires_grad=True)
    weights = dict(module.named_parameters())
    slow = ATTEND(x_BSD[0, :length], weights, causal=False)[None]
    fast = module(x_BSD, valid_BS=(torch.arange(7) < length)[None])[:, :length]
    agree(fast, slow, {"x": x_BSD, **weights})


def model_of(*, tied: bool, dense_too: bool) -> EncoderDecoderModel:
    spec = EncoderDecoder(
        vocab=VOCAB,
        dim=DIM,
        depth=2,
        decoder_depth=3,
        attention=RELATIVE,
        cross=Cross(heads=2, head_dim=5),
        ffn=Glu(hidden=5),
        moe=StackMoE(
            at=At(layers=[1]),
            router=TopK(top_k=2, renormalize=True),
            experts=Glu(count=4, hidden=3),
            dispatcher=Loop(),
            dense_too=dense_too,
        ),
        tied=tied,
        scaled_head=tied,
        init_std=0.6,
        norm_eps=EPS,
    )
    model = EncoderDecoderModel(spec).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms away from 1, so that each one counts
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def predict(model: EncoderDecoderModel, source: list[int], target: list[int]) -> Tensor:
    weights = dict(model.named_parameters())

    def attend(name: str, x_SD: Tensor) -> Tensor:
        mine = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        return ATTEND(x_SD, mine, causal=name.startswith("decoder"))

    def feed(name: str, x_D: Tensor) -> Tensor:
        part = model.get_submodule(name)
        return part(x_D[None])[0][0] if isinstance(part, MoELayer) else run_on_all(part, x_D[None])[0]

    return naive.predict(
        source, target, weights, attend, feed, depths=(2, 3), cross_heads=2, scaled_head=model.spec.scaled_head, eps=EPS
    )


@pytest.mark.parametrize("dense_too", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_wiring_and_gradients(tied: bool, dense_too: bool) -> None:
    model = model_of(tied=tied, dense_too=dense_too)
    source, target = torch.randint(VOCAB, (2, 6)), torch.randint(VOCAB, (2, 5))
    fast = model(target, source=Source(source)).y
    slow = torch.stack([predict(model, s, t) for s, t in zip(source.tolist(), target.tolist(), strict=True)])
    agree(fast, slow, dict(model.named_parameters()))


def test_sources_of_unequal_length() -> None:
    model = model_of(tied=False, dense_too=False)
    source, target = torch.randint(VOCAB, (2, 6)), torch.randint(VOCAB, (2, 5))
    valid = torch.arange(6) < torch.tensor([[3], [6]])
    fast = model.on(Batch(target, target, source=Source(source, valid))).y
    slow = torch.stack([predict(model, source[0, :3].tolist(), target[0].tolist()),
                        predict(model, source[1].tolist(), target[1].tolist())])  # fmt: skip
    agree(fast, slow, dict(model.named_parameters()))
