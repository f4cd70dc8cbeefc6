"""``Dispatcher.limit``: a routing without the dropped pairs, which any other dispatcher can run."""

from __future__ import annotations

import pytest
import torch

from moekit.contracts import LayerDims
from moekit.registry import build
from moekit.routing import TokenChoice, lost_tokens
from moekit.spec.kinds import DispatcherSpec
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_experts.glu import Glu
from moekit_routers.topk import TopK

DIMS = LayerDims(dim=5, num_experts=4)
LIMITS: list[DispatcherSpec] = [
    Capacity(factor=0.6),
    Capacity(factor=0.5, order="affinity", per="sequence"),
    DeviceCapacity(groups=2, factor=0.7, exempt=0.0, inner=Grouped()),
    DeviceCapacity(groups=2, factor=0.9, exempt=0.0, inner=Capacity(factor=0.5)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", [*LIMITS, Grouped(), Loop()], ids=str)
def test_a_limited_routing_gives_the_same_result_through_another_dispatcher(
    spec: DispatcherSpec, training: bool
) -> None:
    torch.manual_seed(0)
    dispatcher, plain = build(spec, DIMS).train(training), build(Loop(), DIMS)
    experts = build(Glu(count=4, hidden=3), DIMS).double()
    x_TD = torch.randn(24, 5, dtype=torch.float64)
    valid_T = torch.rand(24) > 0.2
    routing = build(TopK(top_k=2, renormalize=True), DIMS).double()(x_TD, valid_T=valid_T)
    whole = dispatcher(x_TD, routing, experts, num_sequences=3)
    left, dropped = dispatcher.limit(routing, 3)
    assert isinstance(left, TokenChoice)
    carried = plain(x_TD, left, experts, num_sequences=3)
    torch.testing.assert_close(carried.y_TO, whole.y_TO, rtol=0, atol=1e-12)
    assert dropped.dtype == torch.int64
    assert int(dropped) == int(whole.dropped) == int(routing.load_E().sum() - left.load_E().sum())
    lost = int(lost_tokens(routing, left))
    assert lost == (0 if whole.dropped_tokens is None else int(whole.dropped_tokens))
    counts_TK = left.counts_TK()
    assert counts_TK is not None and lost == int((valid_T & ~counts_TK.any(1)).sum())
    limits = not spec.dropless and (training or not isinstance(spec, DeviceCapacity) or not spec.inner.dropless)
    assert (int(dropped) > 0) == limits
