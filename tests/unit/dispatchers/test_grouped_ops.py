"""The grouped dispatcher's operators: registration, derivatives of both orders, and what they do with odd input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from moekit_dispatchers.grouped import ops
from moekit_dispatchers.grouped.ops import grouped_linear, grouped_outer, sum_rows, take_rows

ENDS = torch.tensor([4, 4, 13], dtype=torch.int32)  # three experts: 4 rows, none, 9; rows from 13 on have no expert
N = 16

# Five tokens, seven rows: token 3 has none, and the last row has no token.
TOKEN_N = torch.tensor([2, 0, 4, 2, 1, 0, 3])
BY_TOKEN_N = torch.tensor([1, 5, 4, 0, 3, 2, 6])
START_T = torch.tensor([0, 2, 3, 5, 5, 6])
BY_TOKEN = (TOKEN_N, BY_TOKEN_N, START_T)


@pytest.fixture(params=["on the host", "on the device"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: as on a CPU, and on the path that a GPU takes, which reads no number on the host."""
    if request.param == "on the device":
        monkeypatch.setattr(ops, "_on_host", lambda t: False)


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


# ---- registration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("D, H", [(8, 16), (5, 7)])
def test_grouped_products_pass_opcheck(dtype: torch.dtype, D: int, H: int) -> None:
    x_ND, w_EHD, g_NH = rand(N, D, dtype=dtype), rand(3, H, D, dtype=dtype), rand(N, H, dtype=dtype)
    torch.library.opcheck(grouped_linear, (x_ND, w_EHD, ENDS))
    torch.library.opcheck(grouped_linear, (g_NH, w_EHD.detach().mT, ENDS))
    torch.library.opcheck(grouped_outer, (g_NH, x_ND, ENDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_movers_pass_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(take_rows, (rand(5, 6, dtype=dtype), *BY_TOKEN))
    torch.library.opcheck(sum_rows, (rand(7, 6, dtype=dtype), rand(7, dtype=dtype), *BY_TOKEN))
    torch.library.opcheck(sum_rows, (rand(7, 6, dtype=dtype), None, *BY_TOKEN))


# ---- derivatives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [[4, 4, 13], [0, 0, 16], [5, 11, 16], [0, 0, 0]], ids=str)
def test_grouped_products_have_right_derivatives_of_both_orders(ends: list[int]) -> None:
    end_E = torch.tensor(ends, dtype=torch.int32)
    linear_inputs, outer_inputs = (rand(N, 3), rand(3, 2, 3)), (rand(N, 2), rand(N, 3))
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x, w: grouped_linear(x, w, end_E), linear_inputs)
        assert check(lambda g, x: grouped_outer(g, x, end_E), outer_inputs)


@pytest.mark.usefixtures("where")
def test_row_movers_have_right_derivatives_of_both_orders() -> None:
    x_TD, y_NO, gate_N = rand(5, 3), rand(7, 3), rand(7)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x: take_rows(x, *BY_TOKEN), (x_TD,))
        assert check(lambda y, gate: sum_rows(y, gate, *BY_TOKEN), (y_NO, gate_N))
        assert check(lambda y: sum_rows(y, None, *BY_TOKEN), (y_NO,))


def test_double_backward_of_the_fp32_product() -> None:
    """The path through ``F.grouped_mm``, which numeric differences cannot reach: against one product per expert."""
    x_ND, w_EHD, g_NH = rand(N, 4, dtype=torch.float32), rand(3, 8, 4, dtype=torch.float32), torch.randn(N, 8)

    def second(y_NH: Tensor) -> tuple[Tensor, ...]:
        dx, dw = torch.autograd.grad((y_NH.square() * g_NH).sum(), (x_ND, w_EHD), create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dw.sin().sum(), (x_ND, w_EHD))

    plain_NH = torch.cat([x_ND[:4] @ w_EHD[0].T, x_ND[4:13] @ w_EHD[2].T, torch.zeros(3, 8)])
    for ours, theirs in zip(second(grouped_linear(x_ND, w_EHD, ENDS)), second(plain_NH), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


# ---- rows without an expert or token ------------------------------------------------------------------------------


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_past_the_last_group_are_zero_and_reach_nothing(dtype: torch.dtype) -> None:
    x_ND, w_EHD = torch.randn(N, 8, dtype=dtype), rand(3, 16, 8, dtype=dtype)
    x_ND[13:] = torch.nan
    x_ND.requires_grad_()
    y_NH = grouped_linear(x_ND, w_EHD, ENDS)
    assert not y_NH[13:].any() and bool(y_NH[:13].isfinite().all())
    g_NH = torch.ones_like(y_NH)
    g_NH[13:] = torch.nan
    dx_ND, dw_EHD = torch.autograd.grad(y_NH, (x_ND, w_EHD), g_NH)
    assert not dx_ND[13:].any() and bool(dx_ND.isfinite().all())
    assert not dw_EHD[1].any() and bool(dw_EHD.isfinite().all())


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_a_token_reach_no_sum(dtype: torch.dtype) -> None:
    y_NO, gate_N = torch.ones(7, 4, dtype=dtype), torch.arange(1, 8, dtype=dtype)
    y_NO[6], gate_N[6] = torch.nan, torch.nan
    y_NO.requires_grad_(), gate_N.requires_grad_()
    y_TO = sum_rows(y_NO, gate_N, *BY_TOKEN)
    assert y_TO[:, 0].tolist() == [2 + 6, 5, 1 + 4, 0, 3]
    dy_NO, d_gate_N = torch.autograd.grad(y_TO, (y_NO, gate_N), torch.ones_like(y_TO))
    assert d_gate_N.tolist() == [4, 4, 4, 4, 4, 4, 0]
    assert dy_NO[:6, 0].tolist() == [1, 2, 3, 4, 5, 6]

    x_TD = torch.ones(5, 4, dtype=dtype)
    x_TD[3] = torch.nan
    assert take_rows(x_TD, *BY_TOKEN)[:, 0].tolist() == [1, 1, 1, 1, 1, 1, 0]


@pytest.mark.usefixtures("where")
def test_operators_take_no_tokens_and_no_rows() -> None:
    none, start_T = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    assert take_rows(torch.zeros(0, 4), none, none, start_T).shape == (0, 4)
    assert sum_rows(torch.zeros(0, 4), torch.zeros(0), none, none, start_T).shape == (0, 4)
    assert not sum_rows(torch.zeros(0, 4), None, none, none, torch.zeros(4, dtype=torch.int64)).any()
    ends, w_EHD = torch.zeros(3, dtype=torch.int32), rand(3, 8, 4, dtype=torch.float32)
    y_NH = grouped_linear(rand(0, 4, dtype=torch.float32), w_EHD, ends)
    assert y_NH.shape == (0, 8)
    assert not torch.autograd.grad(y_NH.sum(), w_EHD)[0].any()


# ---- what F.grouped_mm does on a GPU --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "num_experts", "expected"),
    [
        ("cuda", torch.bfloat16, 1023, True),
        ("cuda", torch.bfloat16, 1024, False),  # there it raises: group_count < 1024
        ("cuda", torch.bfloat16, 65536, False),
        ("cuda", torch.float32, 2048, True),
        ("cpu", torch.bfloat16, 2048, True),
        ("cuda", torch.float64, 8, False),
        ("mps", torch.float32, 8, False),
    ],
)
def test_many_experts_in_bf16_take_the_loop_on_a_gpu(
    device: str, dtype: torch.dtype, num_experts: int, expected: bool
) -> None:
    tensor: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert ops._supports(tensor, num_experts) == expected


def test_the_loop_of_many_experts_equals_the_grouped_product(monkeypatch: pytest.MonkeyPatch) -> None:
    end_E = torch.arange(1, 1025, dtype=torch.int32) // 64
    x_ND, w_EHD = rand(N, 8, dtype=torch.bfloat16), rand(1024, 8, 8, dtype=torch.bfloat16)
    grouped_NH = grouped_linear(x_ND, w_EHD, end_E)
    grouped = torch.autograd.grad(grouped_NH.square().sum(), (x_ND, w_EHD))
    monkeypatch.setattr(ops, "_supports", lambda t, num_experts: False)
    looped_NH = grouped_linear(x_ND, w_EHD, end_E)
    looped = torch.autograd.grad(looped_NH.square().sum(), (x_ND, w_EHD))
    for found, expected in zip((looped_NH, *looped), (grouped_NH, *grouped), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_the_gradient_of_an_idle_experts_weight_is_zero_whatever_the_product_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On sm100 ``F.grouped_mm`` leaves the weight gradients of experts without rows undefined."""
    real = F.grouped_mm

    def undefined(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        return real(a, b, offs=offs).masked_fill_((offs == F.pad(offs[:-1], (1, 0)))[:, None, None], torch.nan)

    monkeypatch.setattr(F, "grouped_mm", undefined)
    monkeypatch.setattr(ops, "_on_host", lambda t: False)
    for ends, idle in (([4, 4, 13], [1]), ([0, 16, 16], [0, 2]), ([0, 0, 0], [0, 1, 2])):
        w_EHD = grouped_outer(torch.ones(N, 8), torch.ones(N, 8), torch.tensor(ends, dtype=torch.int32))
        assert not w_EHD[idle].any() and bool(w_EHD.isfinite().all())


@pytest.mark.parametrize("operand", [0, 1])
def test_rows_reach_the_product_with_consecutive_elements_from_an_aligned_start(
    operand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transposed rows, and views that start within 16 bytes, end in an assertion on a GPU and in nothing on a CPU."""
    real, seen = F.grouped_mm, 0

    def checked(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        rows = (a, b) if b.ndim == 3 else (a.t(), b)  # of the outer product, the first is transposed
        for t in rows:
            assert t.stride(-1) == 1 or (t.ndim == 3 and t.stride(-2) == 1)
            assert t.data_ptr() % 16 == 0 and all(s == 1 or s % 4 == 0 for s in t.stride())
        return real(a, b, offs=offs)

    monkeypatch.setattr(F, "grouped_mm", checked)
    views = [torch.randn(8, N).T, torch.randn(N * 8 + 2)[2:].view(N, 8), torch.randn(N, 12)[:, 2:10]]
    for view in views:
        x_ND, g_NH = [(view, torch.randn(N, 8)), (torch.randn(N, 8), view)][operand]
        w_EHD = torch.randn(3, 8, 8)
        plain_NH = torch.cat([x_ND[:4] @ w_EHD[0].T, x_ND[4:13] @ w_EHD[2].T, torch.zeros(3, 8)])
        torch.testing.assert_close(grouped_linear(x_ND, w_EHD, ENDS), plain_NH)
        torch.testing.assert_close(grouped_outer(g_NH, x_ND, ENDS)[2], g_NH[4:13].T @ x_ND[4:13])
    assert seen == 6


# ---- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("D, H", [(8, 16), (5, 16), (8, 7), (3, 1), (1, 3)])
def test_any_width_and_layout_equals_one_product_per_expert(dtype: torch.dtype, D: int, H: int) -> None:
    def inputs(layout: str) -> tuple[Tensor, Tensor]:
        if layout == "contiguous":
            return torch.randn(N, D, dtype=dtype), torch.randn(3, H, D, dtype=dtype)
        if layout == "transposed":
            return torch.randn(D, N, dtype=dtype).T, torch.randn(3, D, H, dtype=dtype).mT
        if layout == "sliced":
            return torch.randn(N, D + 3, dtype=dtype)[:, 3:], torch.randn(3, H, 2 * D, dtype=dtype)[..., ::2]
        return torch.randn(N, 1, dtype=dtype).expand(N, D), torch.randn(H, D, dtype=dtype).expand(3, H, D)

    for layout in ("contiguous", "transposed", "sliced", "expanded"):
        x_ND, w_EHD = inputs(layout)
        want_NH = torch.cat([F.linear(x_ND[:4], w_EHD[0]), F.linear(x_ND[4:13], w_EHD[2]), x_ND.new_zeros(3, H)])
        y_NH = grouped_linear(x_ND, w_EHD, ENDS)
        torch.testing.assert_close(y_NH, want_NH, msg=f"{layout}: rows")
        outer_EHD = grouped_outer(y_NH, x_ND, ENDS)
        want_EHD = torch.stack([y_NH[:4].T @ x_ND[:4], x_ND.new_zeros(H, D), y_NH[4:13].T @ x_ND[4:13]])
        torch.testing.assert_close(outer_EHD, want_EHD, msg=f"{layout}: outer")


def test_a_single_row_may_have_an_odd_stride() -> None:
    x_ND, w_EHD = torch.randn(1, 9)[:, :8], torch.randn(1, 4, 8)
    y_NH = grouped_linear(x_ND, w_EHD, torch.tensor([1], dtype=torch.int32))
    torch.testing.assert_close(y_NH, x_ND @ w_EHD[0].T)


def test_expanded_gradients_are_accepted() -> None:
    x_ND, w_EHD = rand(N, 8, dtype=torch.float32), rand(3, 16, 8, dtype=torch.float32)
    grouped_linear(x_ND, w_EHD, ENDS).sum().backward()
    assert x_ND.grad is not None and w_EHD.grad is not None
    torch.testing.assert_close(w_EHD.grad[0], x_ND.detach()[:4].sum(0).expand(16, 8))


def test_aligned_tensors_are_not_copied() -> None:
    w_EHD = torch.randn(3, 16, 8)
    for t in (torch.randn(N, 8), w_EHD, w_EHD.mT, torch.randn(N, 32)[:, 8:16]):
        assert ops._aligned(t).data_ptr() == t.data_ptr()
