"""Router arithmetic: top-k with defined ties and NaN, logits in fp32 at least, padding without effect."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_gpu import pretended_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moekit.router_math import FEW_KEYS, first_top_k, router_logits
from moekit_routers.topk.module import top_two_sum

NAN, INF = float("nan"), float("inf")


class NoSync(TorchDispatchMode):
    """Fails on operations that wait for the device: reading a value, or a shape that depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert not any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select")), func
        return func(*args, **(kwargs or {}))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([-INF, -2.0, 0.0, 0.5, 1.0, INF]), min_size=1, max_size=9), st.data())
def test_first_top_k_sorts_and_the_lowest_index_wins(keys: list[float], data: st.DataObject) -> None:
    above = sum(key > -INF for key in keys)
    k = data.draw(st.integers(1, max(above, 1)))
    for rows in (2, FEW_KEYS // len(keys) + 1):  # few keys are sorted, of many the maximum is taken k times
        got = first_top_k(torch.tensor([keys] * rows), k).tolist()
        assert got == [sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k]] * rows


@pytest.mark.parametrize("times", [1, FEW_KEYS])
def test_first_top_k_counts_nan_as_the_largest(times: int) -> None:
    keys = torch.tensor([[NAN] * 4, [1.0, NAN, 3.0, NAN], [0.0, 3.0, 2.0, 3.0]])
    assert first_top_k(keys.repeat(times, 1), 3).tolist() == [[0, 1, 2], [1, 3, 2], [1, 3, 2]] * times


@pytest.mark.parametrize(("k", "operators"), [(1, 1), (2, 5), (3, 2), (8, 2)])
def test_first_top_k_on_a_gpu_is_the_same_in_few_kernels(k: int, operators: int) -> None:
    keys = torch.randint(0, 3, (FEW_KEYS, 13)).float()
    keys[::5, 3], keys[::7, :5] = NAN, -INF
    with pretended_gpu((9, 0)) as gpu:
        found = first_top_k(gpu.put(keys), k).tolist()
    assert sum(gpu.operators.values()) == operators
    assert found == first_top_k(keys, k).tolist()


def test_first_top_k_keeps_its_argument_and_its_shape_without_rows() -> None:
    keys = torch.rand(3, 5)
    before = keys.clone()
    first_top_k(keys, 4)
    assert torch.equal(keys, before)
    assert first_top_k(torch.empty(0, 5), 2).shape == (0, 2)


def test_top_two_sum_counts_a_tie_twice_and_a_nan_as_the_largest() -> None:
    keys = torch.tensor([[1.0, 3.0, 3.0], [-2.0, -1.0, -4.0], [-INF, 1.0, -INF], [0.0, NAN, 5.0]])
    assert top_two_sum(keys).tolist() == pytest.approx([6.0, -3.0, -INF, NAN], nan_ok=True)
    many = torch.randn(4, 5, 6)
    assert torch.equal(top_two_sum(many), many.topk(2).values.sum(-1))
    assert top_two_sum(torch.empty(0, 3)).shape == (0,)


@pytest.mark.parametrize("rows", [6, FEW_KEYS])
def test_first_top_k_compiles_into_one_graph_and_does_not_wait_for_the_device(rows: int) -> None:
    keys = torch.randint(0, 3, (rows, 7)).float()
    want = first_top_k(keys, 4)
    assert torch.equal(torch.compile(first_top_k, fullgraph=True, backend="eager")(keys, 4), want)
    with NoSync():
        first_top_k(keys, 4)


@pytest.mark.parametrize(
    ("x", "weight", "out"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_logits_are_at_least_fp32(x: torch.dtype, weight: torch.dtype, out: torch.dtype) -> None:
    x_TD, weight_ED = torch.randn(5, 4).to(x), torch.randn(3, 4).to(weight)
    logits_TE = router_logits(x_TD, weight_ED, torch.ones(3))
    assert logits_TE.dtype == out
    exact = x_TD.double() @ weight_ED.double().T + 1
    torch.testing.assert_close(logits_TE.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_the_same_under_autocast(dtype: torch.dtype) -> None:
    x_TD, weight_ED = torch.randn(64, 32).to(dtype), torch.randn(8, 32)
    alone = router_logits(x_TD, weight_ED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x_TD.float() @ weight_ED.T).dtype == torch.bfloat16  # autocast is on
        assert torch.equal(router_logits(x_TD, weight_ED), alone)


def test_logits_work_on_a_device_without_autocast() -> None:
    assert router_logits(torch.empty(5, 4, device="meta"), torch.empty(3, 4, device="meta")).shape == (5, 3)


def test_the_content_of_padding_reaches_no_gradient() -> None:
    def run(fill: float) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        x_TD, weight_ED = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
        valid_T = torch.tensor([True, False, True, False])
        x_TD[~valid_T] = fill
        x_TD.requires_grad_()
        logits_TE = router_logits(x_TD, weight_ED, None, valid_T)
        return (logits_TE.detach(), *torch.autograd.grad(logits_TE.square().sum(), [x_TD, weight_ED]))

    for a, b in zip(run(NAN), run(7.0), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
