"""Code that runs on a GPU never waits for a value from it, and compiles into one graph.

This is tested without a GPU, on a pretended one: all code takes its path for GPUs, and reads are counted, those of
torch's own kernels too.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import pretended_gpu

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
from moekit_dispatchers.triton import Triton
from moekit_dispatchers.triton.module import TritonDispatcher
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
    "capacity": Capacity(factor=2.0, count="tokens"),
    "priority": Capacity(factor=2.0, count="tokens", order="priority", per="sequence"),
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
    losses = {} if isinstance(router, Dense) else LOSSES | (BIAS if type(router).takes_bias else {})
    balancers = {name: spec for name, spec in losses.items() if not (name == "first" and router.lists_all)}
    spec = MoE(router=router, experts=Glu(count=E, hidden=8), dispatcher=dispatcher, balancers=balancers)
    return MoELayer.from_spec(spec, dim=D)


def trained(layer: MoELayer, x_BSD: torch.Tensor, valid_BS: torch.Tensor | None) -> torch.Tensor:
    tokens_BS = torch.ones(x_BSD.shape[:-1], dtype=torch.int64, device=x_BSD.device)
    y_BSD, report = layer(x_BSD, valid=valid_BS, tokens=tokens_BS)
    return y_BSD.float().square().mean() + report.loss() + 0 * report.load_E.sum()


H100, B200, A100 = (9, 0), (10, 0), (8, 0)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("router", ROUTERS)
def test_a_layer_reads_no_value_from_its_device(router: str, dispatcher: str) -> None:
    assert reads_of(layer_of(ROUTERS[router], DISPATCHERS[dispatcher]).bfloat16(), H100) == []


@pytest.mark.parametrize(
    ("dispatcher", "capability", "dtype"),
    [(Grouped(), B200, BF16), (Grouped(), A100, BF16), (Triton(), A100, FP32), (Auto(), A100, FP32)],
    ids=["grouped, B200", "grouped, A100", "triton, A100", "auto, A100"],
)
def test_a_layer_reads_no_value_from_other_gpus(
    dispatcher: DispatcherSpec, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    assert reads_of(layer_of(ROUTERS["deepseek"], dispatcher).to(dtype), capability) == []


def test_a_dense_mixture_reads_no_value_from_its_device() -> None:
    assert reads_of(layer_of(Dense(), Soft()), A100) == []


@pytest.mark.parametrize("dispatcher", ["grouped", "auto"])
def test_without_triton_a_gpu_without_a_grouped_kernel_reads_the_ends_six_times(dispatcher: str) -> None:
    """Once for each product: two in forward, four in backward."""
    layer = layer_of(ROUTERS["deepseek"], DISPATCHERS[dispatcher])
    for part in layer.modules():
        if isinstance(part, TritonDispatcher):
            part.installed = False
    assert reads_of(layer, A100, kernels=False, padding=False) == ["ops.py: _slices: tolist"] * 6


def reads_of(layer: MoELayer, capability: tuple[int, int], *, kernels: bool = True, padding: bool = True) -> list[str]:
    """The reads of a training step, with the lines that wait for them, on a GPU that is not there."""
    dtype = next(layer.parameters()).dtype
    with pretended_gpu(capability, kernels=kernels) as gpu:
        gpu.put_module(layer.train())
        for valid_BS in (None, gpu.put(torch.rand(3, 40) > 0.2)) if padding else (None,):
            x_BSD = gpu.put(torch.randn(3, 40, D, dtype=dtype, requires_grad=True))
            trained(layer, x_BSD, valid_BS).backward()  # type: ignore[no-untyped-call]
            assert x_BSD.grad is not None
        layer.step(gpu.put(torch.ones(E, dtype=torch.int64)))
    return gpu.reads


@pytest.mark.parametrize(
    ("dispatcher", "capability", "most"),
    [(Grouped(), H100, (31, 20)), (Triton(), A100, (29, 18)), (Grouped(), A100, (33, 22))],
    ids=["grouped, H100", "triton", "grouped, A100"],
)
def test_a_layer_needs_few_operators(
    dispatcher: DispatcherSpec, capability: tuple[int, int], most: tuple[int, int]
) -> None:
    """Forward and backward with the router. A small layer waits for launches, each of some microseconds."""
    router = TopK(top_k=3, renormalize=True)
    layer = MoELayer.from_spec(MoE(router=router, experts=Glu(count=E, hidden=8), dispatcher=dispatcher), dim=D)
    with pretended_gpu(capability) as gpu:
        gpu.put_module(layer.train().bfloat16())
        y_BSD, _ = layer(gpu.put(torch.randn(3, 40, D, dtype=torch.bfloat16, requires_grad=True)))
        forward = sum(gpu.operators.values())
        y_BSD.backward(torch.ones_like(y_BSD))
    backward = sum(gpu.operators.values()) - forward - 1  # without the ones
    assert forward <= most[0] and backward <= most[1], (forward, backward, gpu.operators)


def test_every_way_to_read_a_value_is_seen() -> None:
    with pretended_gpu(A100) as gpu:
        x_N, is_N = gpu.put(torch.arange(1.0, 5)), gpu.put(torch.tensor([True, False, True, True]))
        ways = [
            lambda: x_N.tolist(), lambda: x_N[0].item(), lambda: float(x_N.sum()), lambda: bool(is_N.any()),
            lambda: x_N.cpu(), lambda: x_N.nonzero(), lambda: x_N[is_N], lambda: x_N.repeat_interleave(x_N.long()),
            lambda: F.grouped_mm(x_N.expand(4, 4).contiguous(), gpu.put(torch.ones(1, 4, 4)), offs=x_N[3:].int()),
        ]  # fmt: skip
        for i, way in enumerate(ways):
            way()  # type: ignore[no-untyped-call]
            assert len(gpu.reads) == i + 1, f"way {i}: {gpu.reads}"


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
