"""Grouped products: registration, derivatives of both orders, and what they do with odd input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from moekit_dispatchers.grouped import ops, rows
from moekit_dispatchers.grouped.ops import expert_rows, grouped_linear, grouped_outer

ENDS = torch.tensor([4, 4, 13], dtype=torch.int32)  # three experts: 4 rows, none, 9; rows from 13 on have no expert
EXPERTS = torch.tensor([0] * 4 + [2] * 9 + [3] * 3)
N = 16


@pytest.fixture(params=["on the host", "on the device"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: as on a CPU, and on the path that a GPU takes, which reads no number on the host."""
    if request.param == "on the device":
        monkeypatch.setattr(ops, "on_host", lambda t: False)
        monkeypatch.setattr(rows, "on_host", lambda t: False)


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


# ---- registration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("D, H", [(8, 16), (5, 7)])
def test_grouped_products_pass_opcheck(dtype: torch.dtype, D: int, H: int) -> None:
    x_ND, w_EHD, g_NH = rand(N, D, dtype=dtype), rand(3, H, D, dtype=dtype), rand(N, H, dtype=dtype)
    torch.library.opcheck(grouped_linear, (x_ND, w_EHD, ENDS, False))
    torch.library.opcheck(grouped_linear, (g_NH, w_EHD.detach().mT, ENDS, False))
    torch.library.opcheck(grouped_outer, (g_NH, x_ND, ENDS, False))
    torch.library.opcheck(expert_rows, (rand(3, H, dtype=dtype), EXPERTS, ENDS, False))


# ---- derivatives --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("ends", [[4, 4, 13], [0, 0, 16], [5, 11, 16], [0, 0, 0]], ids=str)
def test_grouped_products_have_right_derivatives_of_both_orders(ends: list[int]) -> None:
    end_E = torch.tensor(ends, dtype=torch.int32)
    linear_inputs, outer_inputs = (rand(N, 3), rand(3, 2, 3)), (rand(N, 2), rand(N, 3))
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x, w: grouped_linear(x, w, end_E, False), linear_inputs)
        assert check(lambda g, x: grouped_outer(g, x, end_E, False), outer_inputs)
    expert_N = torch.searchsorted(end_E, torch.arange(N, dtype=torch.int32), right=True)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda p: expert_rows(p, expert_N, end_E, False), (rand(3, 2),))


def test_double_backward_of_the_fp32_product() -> None:
    """The path through ``F.grouped_mm``, which numeric differences cannot reach: against one product per expert."""
    x_ND, w_EHD, g_NH = rand(N, 4, dtype=torch.float32), rand(3, 8, 4, dtype=torch.float32), torch.randn(N, 8)

    def second(y_NH: Tensor) -> tuple[Tensor, ...]:
        dx, dw = torch.autograd.grad((y_NH.square() * g_NH).sum(), (x_ND, w_EHD), create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dw.sin().sum(), (x_ND, w_EHD))

    plain_NH = torch.cat([x_ND[:4] @ w_EHD[0].T, x_ND[4:13] @ w_EHD[2].T, torch.zeros(3, 8)])
    for ours, theirs in zip(second(grouped_linear(x_ND, w_EHD, ENDS, False)), second(plain_NH), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


# ---- rows without an expert or token ------------------------------------------------------------------------------


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_past_the_last_group_are_zero_and_reach_nothing(dtype: torch.dtype) -> None:
    x_ND, w_EHD = torch.randn(N, 8, dtype=dtype), rand(3, 16, 8, dtype=dtype)
    x_ND[13:] = torch.nan
    x_ND.requires_grad_()
    y_NH = grouped_linear(x_ND, w_EHD, ENDS, False)
    assert not y_NH[13:].any() and bool(y_NH[:13].isfinite().all())
    g_NH = torch.ones_like(y_NH)
    g_NH[13:] = torch.nan
    dx_ND, dw_EHD = torch.autograd.grad(y_NH, (x_ND, w_EHD), g_NH)
    assert not dx_ND[13:].any() and bool(dx_ND.isfinite().all())
    assert not dw_EHD[1].any() and bool(dw_EHD.isfinite().all())
    p_EX = rand(3, 5, dtype=dtype)
    p_NX = expert_rows(p_EX, EXPERTS, ENDS, False)
    assert torch.equal(p_NX, torch.cat([p_EX[EXPERTS[:13]], p_EX.new_zeros(3, 5)]))
    (dp_EX,) = torch.autograd.grad(p_NX, p_EX, g_NH[:, :5])
    assert dp_EX.tolist() == [[4] * 5, [0] * 5, [9] * 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_if_all_rows_have_an_expert_nothing_else_changes(dtype: torch.dtype) -> None:
    end_E, expert_N = torch.tensor([4, 4, 16], dtype=torch.int32), torch.tensor([0] * 4 + [2] * 12)
    x_ND, w_EHD, p_EX = rand(N, 8, dtype=dtype), rand(3, 16, 8, dtype=dtype), rand(3, 16, dtype=dtype)

    def run(all_sent: bool) -> tuple[Tensor, ...]:
        y_NH = grouped_linear(x_ND, w_EHD, end_E, all_sent) + expert_rows(p_EX, expert_N, end_E, all_sent)
        return y_NH, *torch.autograd.grad(y_NH.square().sum(), (x_ND, w_EHD, p_EX))

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(run(True), run(False), strict=True))


@pytest.mark.usefixtures("where")
def test_products_take_no_rows() -> None:
    ends, w_EHD = torch.zeros(3, dtype=torch.int32), rand(3, 8, 4, dtype=torch.float32)
    y_NH = grouped_linear(rand(0, 4, dtype=torch.float32), w_EHD, ends, False)
    assert y_NH.shape == (0, 8)
    assert not torch.autograd.grad(y_NH.sum(), w_EHD)[0].any()


# ---- what F.grouped_mm does on a GPU --------------------------------------------------------------------------------


def test_the_loop_of_many_experts_equals_the_grouped_product(monkeypatch: pytest.MonkeyPatch) -> None:
    end_E = torch.arange(1, 1025, dtype=torch.int32) // 64
    x_ND, w_EHD = rand(N, 8, dtype=torch.bfloat16), rand(1024, 8, 8, dtype=torch.bfloat16)
    grouped_NH = grouped_linear(x_ND, w_EHD, end_E, False)
    grouped = torch.autograd.grad(grouped_NH.square().sum(), (x_ND, w_EHD))
    monkeypatch.setattr(ops, "_has_grouped_mm", lambda t, num_experts: False)
    looped_NH = grouped_linear(x_ND, w_EHD, end_E, False)
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
    monkeypatch.setattr(ops, "capability_of", lambda device: (10, 0))
    for ends, idle in (([4, 4, 13], [1]), ([0, 16, 16], [0, 2]), ([0, 0, 0], [0, 1, 2])):
        w_EHD = grouped_outer(torch.ones(N, 8), torch.ones(N, 8), torch.tensor(ends, dtype=torch.int32), False)
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
        torch.testing.assert_close(grouped_linear(x_ND, w_EHD, ENDS, False), plain_NH)
        torch.testing.assert_close(grouped_outer(g_NH, x_ND, ENDS, False)[2], g_NH[4:13].T @ x_ND[4:13])
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
        y_NH = grouped_linear(x_ND, w_EHD, ENDS, False)
        torch.testing.assert_close(y_NH, want_NH, msg=f"{layout}: rows")
        outer_EHD = grouped_outer(y_NH, x_ND, ENDS, False)
        want_EHD = torch.stack([y_NH[:4].T @ x_ND[:4], x_ND.new_zeros(H, D), y_NH[4:13].T @ x_ND[4:13]])
        torch.testing.assert_close(outer_EHD, want_EHD, msg=f"{layout}: outer")


def test_a_single_row_may_have_an_odd_stride() -> None:
    x_ND, w_EHD = torch.randn(1, 9)[:, :8], torch.randn(1, 4, 8)
    y_NH = grouped_linear(x_ND, w_EHD, torch.tensor([1], dtype=torch.int32), True)
    torch.testing.assert_close(y_NH, x_ND @ w_EHD[0].T)


def test_expanded_gradients_are_accepted() -> None:
    x_ND, w_EHD = rand(N, 8, dtype=torch.float32), rand(3, 16, 8, dtype=torch.float32)
    grouped_linear(x_ND, w_EHD, ENDS, False).sum().backward()
    assert x_ND.grad is not None and w_EHD.grad is not None
    torch.testing.assert_close(w_EHD.grad[0], x_ND.detach()[:4].sum(0).expand(16, 8))


def test_aligned_tensors_are_not_copied() -> None:
    w_EHD = torch.randn(3, 16, 8)
    for t in (torch.randn(N, 8), w_EHD, w_EHD.mT, torch.randn(N, 32)[:, 8:16]):
        assert ops._aligned(t).data_ptr() == t.data_ptr()
