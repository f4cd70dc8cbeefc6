"""Mistakes in the lineage's parts that no other test noticed: each was made in moekit, and the suite stayed green.

Traps that other tests catch have no second test here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moekit.contracts import Init, LayerDims, Model, ModelOutput, Source
from moekit.registry import build
from moekit.spec import component_spec
from moekit_data.labelled_text import LabelledText
from moekit_data.padding import side_by_side
from moekit_data.text_files import TextFiles
from moekit_experts.ffn import Ffn
from moekit_experts.glu import Glu
from moekit_optimizers.decay import groups
from moekit_routers.strict import Strict
from moekit_routers.strict.module import StrictRouter
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter

EPS = 1e-2


def jitter_of(x_TD: torch.Tensor) -> torch.Tensor:
    """The factors by which a router in training multiplied its input of ones: with W = I they are its logits."""
    D = x_TD.shape[1]
    router = TopKRouter(TopK(top_k=1, input_jitter=EPS), LayerDims(dim=D, num_experts=D)).train()
    with torch.no_grad():
        router.weight_ED.copy_(torch.eye(D))
    return router(x_TD).logits_TE.detach()


def test_jitter_is_drawn_for_every_element() -> None:
    """Switch, section 2.4, as its code has it: U(1 - eps, 1 + eps) for each number, not one for each token."""
    torch.manual_seed(0)
    factor_TD = jitter_of(torch.ones(50, 64))
    assert factor_TD.min() >= 1 - EPS and factor_TD.max() <= 1 + EPS
    for spread in (factor_TD.std(0), factor_TD.std(1)):  # a uniform draw's is eps / sqrt(3)
        torch.testing.assert_close(spread, torch.full_like(spread, EPS / 3**0.5), rtol=0.3, atol=0)
    assert abs(factor_TD.mean() - 1) < EPS / 50


def test_jitter_on_bf16_tokens_is_not_rounded_to_bf16() -> None:
    """bf16 knows five numbers within 1% of 1: the router's input is widened before it is multiplied."""
    torch.manual_seed(0)
    factor_TD = jitter_of(torch.ones(4, 64, dtype=torch.bfloat16))
    assert factor_TD.dtype == torch.float32
    assert factor_TD.unique().numel() > 200


def test_a_threshold_that_is_just_met_is_not_passed() -> None:
    """Shazeer et al., appendix F: x > T. At the start, with equal logits, no token passes anywhere."""
    router = StrictRouter(Strict(top_k=2), LayerDims(dim=3, num_experts=4)).eval()
    with torch.no_grad():
        router.weight_ED.zero_()
    routing = router(torch.randn(5, 3))
    assert routing.sent_TK is not None and not routing.sent_TK.any()
    assert not routing.gate_TK.any()
    with torch.no_grad():
        router.threshold_E[1] -= 1e-6
    assert router(torch.randn(5, 3)).load_E().tolist() == [0, 5, 0, 0]


def test_dropout_takes_what_every_part_adds_and_never_the_residual() -> None:
    """T5's places: embeddings, the output of each part, and that of each stack; ST-MoE's dense part is one of them."""
    model = build(
        component_spec(
            "model",
            {
                "use": "encoder_decoder",
                "vocab": 13,
                "dim": 8,
                "depth": 1,
                "attention": {"use": "relative", "heads": 2, "head_dim": 4},
                "cross": {"heads": 2, "head_dim": 4},
                "ffn": {"use": "glu", "hidden": 8},
                "moe": {
                    "at": {"every": 1},
                    "dense_too": True,
                    "router": {"use": "topk", "top_k": 2},
                    "experts": {"use": "glu", "count": 4, "hidden": 8},
                    "dispatcher": {"use": "grouped"},
                },
                "dropout": 0.5,
            },
        )
    )
    places: dict[str, list[torch.Tensor]] = {"encoder": [], "decoder": []}

    def all_of_it(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor], torch.Tensor], torch.Tensor]:
        def hook(_: torch.nn.Module, given: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
            if "blocks" in name:
                return torch.zeros_like(out)  # of a block nothing but the residual is left
            places[name.partition(".")[0]].append(given[0])
            return given[0]

        return hook

    in_blocks: dict[str, int] = {"encoder": 0, "decoder": 0}
    for name, module in model.named_modules():
        if name.endswith("dropout"):
            module.register_forward_hook(all_of_it(name))
            if "blocks" in name:
                stack = name.partition(".")[0]
                module.register_forward_pre_hook(lambda *_, s=stack: in_blocks.update({s: in_blocks[s] + 1}))
    source, target = torch.randint(13, (2, 5)), torch.randint(13, (2, 3))
    model.train()(target, source=Source(source))
    assert in_blocks == {"encoder": 3, "decoder": 4}  # attention, mixture, dense part; the decoder's look at the source
    for name, tokens in (("encoder", source), ("decoder", target)):
        embedded, out = places[name]
        torch.testing.assert_close(embedded, model.embedding(tokens))
        torch.testing.assert_close(out, getattr(model, name).norm(embedded))


@pytest.mark.parametrize("bank", [Glu(count=3, hidden=320), Ffn(count=3, hidden=320)])
def test_every_expert_matrix_is_drawn_by_its_own_inputs(bank: Glu | Ffn) -> None:
    """Switch, section 2.4: std sqrt(s / n) with n the inputs of this very matrix, cut at two of them."""
    torch.manual_seed(0)
    experts = build(bank, LayerDims(dim=80, num_experts=3))
    experts.init_weights(Init(scale=0.1))
    cut_normal = 0.8796  # the standard deviation of a standard normal that is cut at 2
    for weight in experts.parameters():
        sigma = (0.1 / weight.shape[-1]) ** 0.5
        assert weight.shape[-1] in (80, 320) and weight.abs().max() <= 2 * sigma
        assert abs(weight.std() / sigma - cut_normal) < 0.02


def test_a_multiplicative_bias_does_not_decay() -> None:
    """ST-MoE's factors start at 1: decay would pull them, and the expert with them, to 0. They are ``[E, H]``."""
    experts = build(Glu(count=2, hidden=3, scale_bias=True), LayerDims(dim=4, num_experts=2))
    decaying, other = groups(experts, 0.1, "AdamW")
    assert [tuple(p.shape) for p in other["params"]] == [(2, 3)] and other["weight_decay"] == 0.0
    assert len(decaying["params"]) == 2


def test_guessing_is_the_share_of_the_commonest_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one over the number of labels: a model that always says the commonest must not look as if it had learnt."""
    text = TextFiles(path="nowhere", seq=4, batch=2)
    data = build(LabelledText(text=text, vocab=257))
    batch = side_by_side(
        [torch.tensor([1, 2])] * 4, [torch.tensor([7])] * 4, end=data.end, domain=torch.tensor([1, 1, 0, 1])
    )
    monkeypatch.setattr(data, "validation_batches", lambda: iter([batch]))
    monkeypatch.setattr(data, "domain_names", lambda: ["a", "b", "c"])

    class Silent(Model):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, inputs: torch.Tensor, *, valid: torch.Tensor | None = None) -> ModelOutput:
            return ModelOutput(y=torch.zeros(*inputs.shape, 257))

    assert data.scores(Silent()) == {"accuracy": 0.0, "guessing": 0.75, "scored_windows": 4.0}
