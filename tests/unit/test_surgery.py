"""``moekit.replace``: mixtures in torch's Transformer layers, a ViT, a Llama; mistakes leave the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import moekit
from moekit.training import BalanceStep

OPTIONS: dict[str, Any] = {
    "router": {"use": "topk", "top_k": 2},
    "experts": {"use": "glu", "count": 4, "hidden": 8},
    "balancers": {"load": {"use": "load_balance", "weight": 0.1}},
}


class Mlp(nn.Sequential):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Block(nn.Module):
    """As in torchvision's ViT: ``ln_1``, ``self_attention``, ``ln_2``, ``mlp``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.mlp = Mlp(dim, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.self_attention(h, h, h)[0]
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class ViT(nn.Module):
    def __init__(self, dim: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 2, stride=2)
        self.layers = nn.Sequential(*(Block(dim) for _ in range(depth)))
        self.head = nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(self.patches(images).flatten(2).mT).mean(1))
        return y


def test_a_vit_gets_mixtures_by_glob_and_computes_what_their_parts_compute() -> None:
    model, images = ViT(), torch.randn(5, 1, 8, 8)
    with_identity = copy.deepcopy(model)
    replaced = moekit.replace(model, "layers.[12].mlp", OPTIONS)
    assert list(replaced) == ["layers.1.mlp", "layers.2.mlp"]
    assert {type(block.mlp).__name__ for block in model.layers} == {"Mlp", "OutputOnly"}
    for name, moe in replaced.items():
        block = with_identity.get_submodule(name.rpartition(".")[0])
        block.mlp = nn.Identity()
        block.mlp.forward = lambda x, moe=moe: moe(x)[0]  # type: ignore[method-assign]
    assert torch.allclose(model(images), with_identity(images), atol=1e-5)  # ``auto`` may choose another dispatcher
    model(images).square().mean().backward()
    assert all(p.grad is not None for moe in replaced.values() for p in moe.parameters())


def test_watching_sees_each_layer_once_and_steps_its_balancers() -> None:
    model = ViT()
    moekit.replace(model, Mlp, {**OPTIONS, "balancers": {"bias": {"use": "sign_bias", "rate": 0.5}}})
    balance = BalanceStep(model)
    with balance.watching() as reports:
        model(torch.randn(5, 1, 8, 8))
    model(torch.randn(5, 1, 8, 8))  # outside: not counted
    names = [f"layers.{i}.mlp.moe" for i in range(3)]
    assert [name for name, _ in reports] == names
    step = balance.step()
    assert step is not None and {n: int(load.sum()) for n, load in step.load_E.items()} == dict.fromkeys(names, 160)
    assert all(moe.selection_bias() is not None and moe.selection_bias().any() for moe in balance.layers.values())
    with balance.watching() as reports:
        model.eval()(torch.randn(5, 1, 8, 8))
    assert reports == [] and balance.step() is None


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_torchs_own_layers_run_the_mixture_in_place_of_their_two_linear_layers(kind: str, norm_first: bool) -> None:
    make = nn.TransformerEncoderLayer if kind == "encoder" else nn.TransformerDecoderLayer
    layer = make(16, 2, 32, dropout=0.5, batch_first=True, norm_first=norm_first).eval()
    x, memory = torch.randn(2, 5, 16), () if kind == "encoder" else (torch.randn(2, 3, 16),)
    ((name, moe),) = moekit.replace(layer, make, OPTIONS).items()
    assert name == "" and not moe.training
    seen: list[tuple[Tensor, Tensor]] = []
    moe.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output[0])))
    with torch.no_grad():  # where torch's fused kernel would run
        y = layer(x, *memory)
    ((h, out),) = seen
    last = layer.norm2 if kind == "encoder" else layer.norm3
    assert torch.allclose(y, (y - out) + out) and h.shape == out.shape == y.shape
    if not norm_first:
        assert torch.allclose(y, last(h + out), atol=1e-6)
    layer.train()(x, *memory).sum().backward()
    assert all(p.grad is not None for p in moe.router.parameters())


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_torchs_own_layers_balance_each_sequence_whichever_dimension_counts_them(kind: str) -> None:
    """``batch_first=False``, torch's default, has tokens ``[S, B, D]``."""
    make = nn.TransformerEncoderLayer if kind == "encoder" else nn.TransformerDecoderLayer
    each = {"load": {"use": "load_balance", "scope": "sequence", "weight": 0.1}}
    x, memory = torch.randn(3, 7, 16), torch.randn(3, 2, 16)
    found = []
    for batch_first in (True, False):
        torch.manual_seed(1)
        layer = make(16, 2, 32, dropout=0.0, batch_first=batch_first)
        (moe,) = moekit.replace(layer, make, {**OPTIONS, "balancers": each}).values()
        losses: list[Tensor] = []
        moe.register_forward_hook(lambda *given, losses=losses: losses.append(given[2][1].loss()))
        given = [t if batch_first else t.transpose(0, 1) for t in (x, memory)][: 1 if kind == "encoder" else 2]
        y = layer(*given)
        found.append((y if batch_first else y.transpose(0, 1), losses[0]))
        assert layer(given[0][0], *(each[0] for each in given[1:])).shape == given[0][0].shape  # without a batch
    torch.testing.assert_close(found[1], found[0])


def test_a_padded_transformer_encoder_runs_in_evaluation_without_torchs_fused_kernel() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2)
    assert list(moekit.replace(model, nn.TransformerEncoderLayer, OPTIONS)) == ["layers.0", "layers.1"]
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    trained = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        evaluated = model.eval()(x, src_key_padding_mask=padding)
    assert torch.allclose(trained[~padding], evaluated[~padding], atol=1e-6)


def test_a_llama_of_transformers_gets_mixtures_and_generates() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    assert list(moekit.replace(model, "model.layers.*.mlp", OPTIONS)) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    tokens = torch.randint(50, (2, 9))
    model.activation_checkpointing_enable()
    balance = BalanceStep(model)
    with balance.watching() as reports:
        loss = model.train()(tokens, labels=tokens).loss
    sum(report.loss() for _, report in reports).backward()
    assert loss.requires_grad and all(p.grad is not None for _, p in model.named_parameters() if "router" in _)
    assert [int(report.load_E.sum()) for _, report in reports] == [36, 36]
    assert model.eval().generate(tokens[:, :3], max_new_tokens=4, do_sample=False).shape == (2, 7)


@pytest.mark.parametrize(
    ("module", "widths"),
    [
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6, 3)),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), (6, 3)),
        (nn.ModuleDict({"w1": nn.Linear(6, 8), "w2": nn.Linear(8, 6), "w3": nn.Linear(6, 8)}), (6, 6)),
        (nn.Linear(6, 3), (6, 3)),
    ],
)
def test_the_widths_are_those_of_the_module(module: nn.Module, widths: tuple[int, int]) -> None:
    model = nn.ModuleList([module])
    (moe,) = moekit.replace(model, "0", {**OPTIONS, "experts": {"use": "ffn", "count": 4, "hidden": 8}}).values()
    assert (moe(torch.randn(2, widths[0]))[0].shape[-1], moe.training) == (widths[1], True)


def test_a_mixture_has_dtype_and_mode_of_what_it_replaces_and_a_bias_in_fp32() -> None:
    model = ViT().bfloat16().eval()
    bias = {"bias": {"use": "sign_bias", "rate": 0.5}}
    (moe,) = moekit.replace(model, "layers.0.mlp", {**OPTIONS, "balancers": bias}).values()
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16} and not moe.training
    assert moe.selection_bias() is not None and moe.selection_bias().dtype == torch.float32


def test_a_module_used_twice_becomes_one_mixture() -> None:
    shared = Mlp(6, 8)
    model = nn.ModuleDict({"a": shared, "b": shared})
    replaced = moekit.replace(model, Mlp, OPTIONS)
    assert list(replaced) == ["a", "b"] and replaced["a"] is replaced["b"]
    assert sum(isinstance(m, moekit.MoELayer) for m in model.modules()) == 1


def test_a_recipe_or_a_function_of_the_width_makes_the_layers() -> None:
    model = ViT()
    (v3,) = moekit.replace(model, "layers.0.mlp", "deepseek_v3").values()
    assert v3.spec == moekit.layer("deepseek_v3", dim=12).spec
    own = moekit.replace(model, "layers.*.mlp.2", lambda dim: moekit.layer(dim=dim, out_dim=12, **OPTIONS))
    assert list(own) == ["layers.1.mlp.2", "layers.2.mlp.2"] and model(torch.randn(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("pattern", "layer", "message"),
    [
        (
            "layers.*.mpl",
            OPTIONS,
            r"^no module of ViT matches 'layers\.\*\.mpl'\n  expected the name .*\n  did you mean 'layers\.\*\.mlp'",
        ),
        (nn.LSTM, OPTIONS, r"^no module of ViT is a LSTM\n  expected the name of a module, such as layers\.\*"),
        (
            "*.ln_2",
            OPTIONS,
            r"^the width of 'layers\.0\.ln_2' is unknown: LayerNorm has no nn.Linear\n  expected .* dim",
        ),
        (
            "*.mlp",
            {**OPTIONS, "routr": "topk"},
            "no option 'routr'\n  expected one of dim, .*\n  did you mean 'router'",
        ),
        ("*.mlp", {**OPTIONS, "router": {"use": "topk", "topk": 2}}, "did you mean 'top_k'"),
        ("*.mlp", "deepseek_v4", "unknown recipe 'deepseek_v4'"),
    ],
)
def test_a_mistake_is_named_and_the_model_stays_as_it_was(pattern: Any, layer: Any, message: str) -> None:
    model = ViT()
    before = str(model)
    with pytest.raises(moekit.MoekitError, match=message):
        moekit.replace(model, pattern, layer)
    assert str(model) == before
