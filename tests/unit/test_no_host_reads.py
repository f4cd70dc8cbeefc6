"""Code that runs on a GPU never waits for a value from it, and compiles into one graph.

This is tested without a GPU. Tensors on ``meta`` have no values, so reading one raises; and like all tensors that are
not on a CPU, they take the code path of GPUs.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch

from moekit import build, load
from moekit.moe_layer import MoELayer
from moekit.spec.kinds import BalancerSpec, DispatcherSpec, MoE, RouterSpec
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.sign_bias import SignBias
from moekit_balancers.z_loss import ZLoss
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.soft import Soft
from moekit_experts.glu import Glu
from moekit_routers.dense import Dense
from moekit_routers.hash import Hash
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.sparse_mixer import SparseMixer
from moekit_routers.strict import Strict
from moekit_routers.topk import TopK

E, D = 8, 16
ROUTERS: dict[str, RouterSpec] = {
    "switch": TopK(top_k=1, input_jitter=0.1),
    "gshard": TopK(top_k=2, send_threshold=0.5, renormalize=True),
    "deepseek": TopK(
        top_k=2, score="sigmoid", groups=4, top_groups=2, group_score="top2_sum", renormalize=True, scale=2.5
    ),
    "chosen": TopK(top_k=3, score_over="chosen", bias=True),
    "noisy": NoisyTopK(top_k=2),
    "sparse_mixer": SparseMixer(top_k=2),
    "hash": Hash(vocab=64),
    "hierarchical": Hierarchical(branches=4),
    "strict": Strict(top_k=2),
}
DISPATCHERS: dict[str, DispatcherSpec] = {
    "grouped": Grouped(),
    "capacity": Capacity(factor=1.0),
    "priority": Capacity(factor=1.0, order="priority", per="sequence"),
    "device": DeviceCapacity(groups=4, inner=Grouped()),
    "auto": Auto(),
}
LOSSES: dict[str, BalancerSpec] = {
    "z": ZLoss(),
    "importance": CVSquared(of="importance"),
    "batch": LoadBalance(),
    "first": LoadBalance(scope="sequence", count="first"),
    "step": LoadBalance(scope="step"),
    "affinity": SequenceBalance(),
    "device": DeviceBalance(groups=4),
    "communication": CommunicationBalance(groups=4, top_groups=2),
}
BIAS: dict[str, BalancerSpec] = {"bias": SignBias()}


def layer_of(router: RouterSpec, dispatcher: DispatcherSpec) -> MoELayer:
    balancers = {} if isinstance(router, Dense) else LOSSES | (BIAS if type(router).takes_bias else {})
    spec = MoE(router=router, experts=Glu(count=E, hidden=8), dispatcher=dispatcher, balancers=balancers)
    return MoELayer.from_spec(spec, dim=D)


def trained(layer: MoELayer, x_BSD: torch.Tensor, valid_BS: torch.Tensor | None) -> torch.Tensor:
    tokens_BS = torch.ones(x_BSD.shape[:-1], dtype=torch.int64, device=x_BSD.device)
    y_BSD, report = layer(x_BSD, valid=valid_BS, tokens=tokens_BS)
    return y_BSD.float().square().mean() + report.loss() + 0 * report.load_E.sum()


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("router", ROUTERS)
def test_a_layer_reads_no_value_from_its_device(router: str, dispatcher: str) -> None:
    require_no_reads(layer_of(ROUTERS[router], DISPATCHERS[dispatcher]).to("meta").train())


def test_a_dense_mixture_reads_no_value_from_its_device() -> None:
    require_no_reads(layer_of(Dense(), Soft()).to("meta").train())


def require_no_reads(layer: MoELayer) -> None:
    for valid_BS in (None, torch.ones(3, 40, dtype=torch.bool, device="meta")):
        x_BSD = torch.randn(3, 40, D, device="meta", requires_grad=True)
        trained(layer, x_BSD, valid_BS).backward()  # type: ignore[no-untyped-call]
        assert x_BSD.grad is not None
    layer.step(torch.ones(E, dtype=torch.int64, device="meta"))


def test_reading_a_value_on_meta_raises() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        int(torch.zeros((), device="meta"))


def graph_breaks(run: object, *args: object) -> int:
    torch._dynamo.reset()
    return int(torch._dynamo.explain(run)(*args).graph_break_count)


COMPILED = [
    ("switch", "capacity", False), ("deepseek", "grouped", True), ("gshard", "priority", True),
    ("noisy", "grouped", False), ("deepseek", "device", True), ("switch", "auto", True),
]  # fmt: skip
EVERY = list(product(ROUTERS, DISPATCHERS, (False, True)))


@pytest.mark.parametrize(
    ("router", "dispatcher", "autocast"),
    [pytest.param(*case, marks=[] if case in COMPILED else pytest.mark.slow) for case in EVERY],
)
def test_a_layer_compiles_into_one_graph(router: str, dispatcher: str, autocast: bool) -> None:
    layer = layer_of(ROUTERS[router], DISPATCHERS[dispatcher]).train()
    x_BSD, valid_BS = torch.randn(3, 40, D), torch.ones(3, 40, dtype=torch.bool)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return trained(layer, x, valid_BS)

    assert graph_breaks(run, x_BSD) == 0


QUICK = ("deepseek_v3", "switch")
DECODERS = ("base/language_model", "deepseek_v3", "deepseek_v2", "deepseek_moe", "aux_free", "glam", "gshard", "switch")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in DECODERS]
)
def test_a_recipes_block_compiles_into_one_graph(recipe: str, autocast: bool) -> None:
    model = build(load(recipe).model).train()
    blocks = model.blocks if hasattr(model, "blocks") else model.encoder.blocks
    x_BSD, tokens_BS = torch.randn(2, 24, model.spec.dim), torch.zeros(2, 24, dtype=torch.int64)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return blocks[-1](x, None, tokens_BS)[0]

    assert graph_breaks(run, x_BSD) == 0
