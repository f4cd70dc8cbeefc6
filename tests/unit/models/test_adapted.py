"""Linear layers with adapters: the oracle is the plain model whose matrices are W + alpha / rank · B A."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekit.contracts import Model, Source
from moekit.errors import SpecError
from moekit.registry import build
from moekit.spec import component_spec
from moekit_models.adapted import AdaptedLinear

LORA = {"rank": 3, "alpha": 6.0}
GQA = {"use": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 8, "bias": "all"}
MLA = {"use": "mla", "heads": 2, "query_rank": 6, "kv_rank": 8, "nope_dim": 4, "rope_dim": 4, "value_dim": 8}
FFN = {"use": "ffn", "hidden": 8}
DECODER = {"use": "decoder", "vocab": 11, "dim": 16, "depth": 2, "attention": GQA, "ffn": FFN}
PAIRS = {
    "use": "encoder_decoder", "vocab": 11, "dim": 16, "depth": 1, "ffn": FFN, "cross": {"heads": 2, "head_dim": 4},
    "attention": {"use": "relative", "heads": 2, "head_dim": 4},
}  # fmt: skip
IDS_BS = torch.arange(14).reshape(2, 7) % 11


def model_of(node: dict[str, Any]) -> Model:
    torch.manual_seed(0)
    model: Model = build(component_spec("model", node)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def outputs(model: Model) -> Tensor:
    given = {"source": Source(IDS_BS.flip(1))} if model.spec.takes == "pairs" else {}
    return model(IDS_BS, **given).y


@pytest.mark.parametrize(
    ("node", "at", "count"),
    [
        (DECODER, ["attention"], 8),
        (DECODER, ["q", "v"], 4),
        ({**DECODER, "attention": MLA, "mtp": {"depth": 1}}, ["attention"], 10),
        (PAIRS, ["cross_attention"], 4),
    ],
)
def test_it_computes_what_the_merged_matrices_compute(node: dict[str, Any], at: list[str], count: int) -> None:
    """Also gradients: of B it is alpha / rank · dW Aᵀ, of A alpha / rank · Bᵀ dW; and W has none."""
    adapted, plain = model_of({**node, "lora": {**LORA, "at": at}}), model_of(node)
    layers = {name: each for name, each in adapted.named_modules() if isinstance(each, AdaptedLinear)}
    assert len(layers) == count
    state = {name.replace(".base.", "."): each for name, each in adapted.state_dict().items() if "adapters" not in name}
    for name, each in layers.items():
        own = each.adapters
        state[f"{name}.weight"] = each.base.weight.detach() + 2.0 * own.b_HX.detach() @ own.a_XD.detach()
    plain.load_state_dict(state)
    ours, merged = outputs(adapted), outputs(plain)
    torch.testing.assert_close(ours, merged)
    ours.square().mean().backward()
    merged.square().mean().backward()
    for name, each in layers.items():
        own, grad = each.adapters, plain.get_parameter(f"{name}.weight").grad
        if grad is None:  # of multi-token prediction, which trains alone
            assert own.b_HX.grad is None and "mtp" in name
            continue
        torch.testing.assert_close(own.b_HX.grad, 2.0 * grad @ own.a_XD.detach().T)
        torch.testing.assert_close(own.a_XD.grad, 2.0 * own.b_HX.detach().T @ grad)
        assert each.base.weight.grad is None and not each.base.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("attention", [GQA, MLA])
def test_decoding_with_a_cache_has_the_adapters_too(attention: dict[str, Any]) -> None:
    """Latent attention then multiplies by matrices themselves."""
    model = model_of({**DECODER, "attention": attention, "lora": LORA})
    cache = model.start_cache()
    assert cache is not None
    steps = [model.decode(IDS_BS[:, i : i + 1], cache).y for i in range(IDS_BS.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), outputs(model))


def test_at_first_nothing_changes() -> None:
    built: Model = build(component_spec("model", {**DECODER, "lora": LORA}))
    own = [each.adapters for each in built.modules() if isinstance(each, AdaptedLinear)]
    assert len(own) == 8 and not any(each.b_HX.any() or not each.a_XD.any() for each in own)


def test_a_word_that_names_no_layer_is_refused() -> None:
    with pytest.raises(SpecError, match=r"(?s)no linear layer of the blocks has 'query' in its name.*attention, q, k"):
        build(component_spec("model", {**DECODER, "lora": {"at": ["query"]}}))
    with pytest.raises(SpecError, match=r"lora\.at is empty"):
        component_spec("model", {**DECODER, "lora": {"at": []}})
