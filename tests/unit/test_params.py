"""Parameter counts: DeepSeek-V3's published total exactly, and every rule on small models, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import moekit
from moekit.contracts import ExpertBank, LayerDims, Model, ModelOutput, Router
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.params import PARTS, ParameterCount, build_on_meta, count_parameters
from moekit.spec.kinds import RouterSpec
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sign_bias import SignBias
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_experts.glu import Glu
from moekit_models.decoder import MTP, At, Decoder, DecoderMoE
from moekit_models.gqa import GQA
from moekit_models.mlp import MLP
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter


@pytest.fixture(scope="module")
def v3() -> ParameterCount:
    return count_parameters(moekit.load("deepseek_v3-671b"))


def test_deepseek_v3_has_its_published_counts(v3: ParameterCount) -> None:
    assert v3.total == 671_026_419_200
    assert v3.active("both") == pytest.approx(37.552e9, abs=5e5)
    assert v3.active("without_input") == pytest.approx(36.626e9, abs=5e5)
    assert v3.active("without_either") == pytest.approx(35.7e9, abs=5e7)
    assert v3.extra["mtp"] == pytest.approx(11.610e9, abs=5e5)


def test_the_parts_of_deepseek_v3_are_as_computed_from_its_sizes(v3: ParameterCount) -> None:
    D, L = 7168, 61
    assert v3.parts["embedding"] == v3.parts["head"] == 129280 * D
    assert v3.parts["attention"] == L * (D * 1536 + 1536 * 128 * 192 + D * (512 + 64) + 512 * 128 * 256 + 128 * 128 * D)
    assert v3.parts["dense ffn"] == 3 * 3 * D * 18432
    assert v3.parts["routers"] == 58 * 256 * D
    assert v3.parts["routed experts"] == 58 * 256 * 3 * D * 2048
    assert v3.parts["shared experts"] == 58 * 3 * D * 2048
    assert v3.parts["norms"] == L * (2 * D + 1536 + 512) + D
    assert v3.parts["biases"] == 58 * 256
    assert v3.parts["other"] == 0
    assert v3.active_parts["routed experts"] == 58 * 8 * 3 * D * 2048


def small(**changes: object) -> Decoder:
    spec = Decoder(
        vocab=20,
        dim=8,
        depth=2,
        attention=GQA(heads=2, head_dim=4),
        ffn=Glu(hidden=5),
        moe=DecoderMoE(
            at=At(first=1),
            router=TopK(top_k=2, bias=True),
            experts=Glu(count=4, hidden=3),
            shared=Glu(count=2, hidden=3),
            balancers={"bias": SignBias(rate=0.1), "load": LoadBalance(weight=0.1, scope="step")},
            dispatcher=Grouped(),
        ),
        mtp=MTP(depth=1),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def test_the_parts_of_a_small_decoder_are_as_counted_by_hand() -> None:
    count = count_parameters(small())
    assert count.parts == {
        "embedding": 160,
        "attention": 2 * 4 * 64,
        "dense ffn": 3 * 8 * 5,
        "routers": 4 * 8 + 4,
        "routed experts": 4 * 3 * 8 * 3,
        "shared experts": 2 * 3 * 8 * 3,
        "norms": 5 * 8,
        "head": 160,
        "biases": 4,  # of the selection bias; the other balancer has none
        "other": 0,
    }
    assert list(count.parts) == list(PARTS) == list(count.active_parts)
    assert count.active() == count.total - 2 * 3 * 8 * 3
    assert count.active("without_input") == count.active() - 160
    assert count.active("without_either") == count.active() - 320
    # merge, two norms before it and one after it; attention, two norms; router, experts, shared, bias
    assert count.extra == {"mtp": 2 * 64 + 3 * 8 + 256 + 2 * 8 + 36 + 288 + 144 + 4}


def test_a_tied_matrix_counts_once_and_as_the_head() -> None:
    untied, tied = count_parameters(small()), count_parameters(small(tied=True))
    assert tied.total == untied.total - 160
    assert tied.active("without_input") == tied.active("both")
    assert tied.active("without_either") == untied.active("without_either")


def test_a_built_model_counts_as_its_spec_does() -> None:
    spec = small()
    model = moekit.build(spec)
    assert count_parameters(model) == count_parameters(spec)
    everything = sum(p.numel() for p in model.parameters()) + 2 * 4
    assert count_parameters(spec).total + count_parameters(spec).extra["mtp"] == everything


def test_building_on_meta_does_not_change_the_default_device() -> None:
    assert all(p.is_meta for p in build_on_meta(small()).parameters())
    assert not torch.empty(1).is_meta


def test_frozen_parameters_do_not_count() -> None:
    model = moekit.build(small())
    model.embedding.weight.requires_grad_(False)
    assert count_parameters(model).parts["embedding"] == 0


def test_parameters_of_no_known_part_count_as_other() -> None:
    count = count_parameters(MLP(inputs=2, hidden=6))
    assert count.parts["other"] == count.total == count.active() == count.active("without_either") == 25
    assert count.extra == {}


class Nameless(Router):
    """A router without a spec."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TopKRouter(TopK(top_k=1), LayerDims(dim=4, num_experts=2))

    def forward(self, x_TD, *, valid_T=None, selection_bias_E=None, token_T=None):  # type: ignore[no-untyped-def]
        return self.inner(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E)


class HandMade(Model):
    """A model built by hand, which no registry knows."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        experts = ExpertBank.from_modules([nn.Linear(4, 4), nn.Linear(4, 4)], out_dim=4)
        self.moe = MoELayer(router=router, experts=experts, dispatcher=GroupedDispatcher(Grouped(), DIMS))
        self.final = nn.LayerNorm(4)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        y, report = self.moe(inputs, valid=valid)
        return ModelOutput(y=self.final(y), reports={"moe": report})


DIMS = LayerDims(dim=4, num_experts=2)


def test_a_model_built_by_hand_is_counted() -> None:
    count = count_parameters(HandMade(TopKRouter(TopK(top_k=1), DIMS)))
    assert {part: n for part, n in count.parts.items() if n} == {"routers": 8, "routed experts": 40, "norms": 8}
    assert count.active() == 8 + 20 + 8


class Ahead(nn.Module):
    """A part that only training uses: it shares the model's norm and has a matrix of its own."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.own = shared, nn.Linear(4, 4, bias=False)


class WithAhead(HandMade):
    """Its extra part shares a module with the model."""

    def __init__(self) -> None:
        super().__init__(TopKRouter(TopK(top_k=1), DIMS))
        self.ahead = Ahead(self.final)

    def extra_parts(self) -> dict[str, nn.Module]:
        return {"ahead": self.ahead}


def test_extra_parts_count_without_what_they_share() -> None:
    count = count_parameters(WithAhead())
    assert count.extra == {"ahead": 16}
    assert count.total == count_parameters(HandMade(TopKRouter(TopK(top_k=1), DIMS))).total


def test_the_spec_of_a_layer_gives_the_active_experts_of_a_router_without_one() -> None:
    model = HandMade(Nameless())
    model.moe.spec = DecoderMoE(
        at=At(first=0), router=TopK(top_k=1), experts=Glu(count=2, hidden=1), dispatcher=Grouped()
    )
    assert count_parameters(model).active_parts["routed experts"] == 20


def test_a_router_without_a_spec_is_rejected() -> None:
    with pytest.raises(MoekitError, match="router Nameless does not say how many experts a token activates"):
        count_parameters(HandMade(Nameless()))


def test_a_router_spec_without_active_is_rejected() -> None:
    with pytest.raises(MoekitError, match=r"Silent does not say .*\n  expected a method active\(self, num_experts\)"):
        Silent().active(4)


class Silent(RouterSpec):
    """Options of a router without ``active``."""
