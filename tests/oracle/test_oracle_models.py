"""The decoder's wiring against a loop over places, in fp64: main model and multi-token prediction, and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moekit.contracts import Batch
from moekit.layer import MoELayer, run_on_all
from moekit_dispatchers.loop import Loop
from moekit_experts.glu import Glu
from moekit_models.decoder import MTP, At, Decoder, DecoderMoE, naive
from moekit_models.decoder.module import DecoderModel
from moekit_models.gqa import GQA
from moekit_models.gqa import naive as gqa_naive
from moekit_objectives.causal_lm import CausalLM
from moekit_objectives.causal_lm import naive as loss_naive
from moekit_objectives.causal_lm.module import CausalLMObjective
from moekit_routers.topk import TopK

VOCAB, DIM, EPS = 7, 6, 1e-3


def model_of(*, tied: bool, ahead: int) -> DecoderModel:
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
    )
    model = DecoderModel(spec).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms away from 1, so that each one counts
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def predict(model: DecoderModel, tokens: list[int], ahead: int) -> list[dict[int, Tensor]]:
    weights = dict(model.named_parameters())

    def attend(name: str, x_SD: Tensor) -> Tensor:
        mine = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        return gqa_naive.attend(x_SD, mine, heads=2, kv_heads=1, theta=50.0, eps=1e-6)

    def feed(name: str, x_D: Tensor) -> Tensor:
        part = model.get_submodule(name)
        return part(x_D[None])[0][0] if isinstance(part, MoELayer) else run_on_all(part, x_D[None])[0]

    return naive.predict(tokens, weights, attend, feed, depth=2, ahead=ahead, eps=EPS)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ahead", [1, 3])
def test_predictions_stand_at_the_right_places(tied: bool, ahead: int) -> None:
    model = model_of(tied=tied, ahead=ahead)
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


def test_loss_and_gradients_with_multi_token_prediction() -> None:
    model = model_of(tied=False, ahead=2)
    objective = CausalLMObjective(CausalLM(mtp_weight=0.3))
    text_BT = torch.randint(VOCAB, (2, 6))
    batch = Batch(text_BT[:, :-1], text_BT[:, 1:])
    loss = objective(model(batch.inputs), batch)
    predicted = [predict(model, text[:-1].tolist(), 2) for text in text_BT]
    probs = [
        torch.stack([torch.stack([p[k][j].softmax(-1) for j in sorted(p[k])]) for p in predicted]) for k in range(3)
    ]
    expected = loss_naive.mean_loss(text_BT, probs, 0.3)
    fast = loss.total / loss.count
    torch.testing.assert_close(fast, expected, rtol=1e-12, atol=0)
    leaves = dict(model.named_parameters())
    for name, a, b in zip(
        leaves,
        torch.autograd.grad(fast, list(leaves.values())),
        torch.autograd.grad(expected, list(leaves.values())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
