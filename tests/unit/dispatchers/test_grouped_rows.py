"""Rows from tokens and sums by token: registration, derivatives of both orders, rows without an expert, dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from moekit_dispatchers.grouped import rows
from moekit_dispatchers.grouped.rows import ByToken, gated_backward, sum_rows, take_rows

# Five tokens, seven rows: token 3 has none, and the last row has no expert.
BY_TOKEN = ByToken(
    token_N=torch.tensor([2, 0, 4, 2, 1, 0, 3]),
    by_token_N=torch.tensor([1, 5, 4, 0, 3, 2, 6]),
    start_T=torch.tensor([0, 2, 3, 5, 5, 6]),
    all_sent=False,
)
ALL_SENT = BY_TOKEN._replace(start_T=torch.tensor([0, 2, 3, 5, 6, 7]), by_token_N=torch.tensor([1, 5, 4, 0, 3, 6, 2]))


@pytest.fixture(params=["on the host", "on the device"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: as on a CPU, and on the path of a GPU without Triton, which reads no number on the host."""
    if request.param == "on the device":
        monkeypatch.setattr(rows, "on_host", lambda t: False)


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_row_movers_pass_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(take_rows, (rand(5, 6, dtype=dtype), *BY_TOKEN, torch.float32))
    torch.library.opcheck(sum_rows, (rand(7, 6, dtype=dtype), rand(7, dtype=torch.float32), *BY_TOKEN, dtype))
    torch.library.opcheck(sum_rows, (rand(7, 6, dtype=dtype), None, *BY_TOKEN, torch.float32))
    plain = (torch.randn(5, 6, dtype=dtype), torch.randn(7, 6, dtype=dtype), torch.randn(7))
    torch.library.opcheck(gated_backward, (*plain, BY_TOKEN.token_N, BY_TOKEN.start_T, False))


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    "by_token", [BY_TOKEN, ALL_SENT, ALL_SENT._replace(all_sent=True)], ids=["some", "all", "said"]
)
def test_row_movers_have_right_derivatives_of_both_orders(by_token: ByToken) -> None:
    x_TD, y_NO, gate_N = rand(5, 3), rand(7, 3), rand(7)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x: take_rows(x, *by_token, torch.float64), (x_TD,))
        assert check(lambda y, gate: sum_rows(y, gate, *by_token, torch.float64), (y_NO, gate_N))
        assert check(lambda y: sum_rows(y, gate_N.detach(), *by_token, torch.float64), (y_NO,))
        assert check(lambda y: sum_rows(y, None, *by_token, torch.float64), (y_NO,))


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_without_an_expert_reach_no_sum(dtype: torch.dtype) -> None:
    y_NO, gate_N = torch.ones(7, 4, dtype=dtype), torch.arange(1, 8, dtype=torch.float32)
    y_NO[6], gate_N[6] = torch.nan, torch.nan
    y_NO.requires_grad_(), gate_N.requires_grad_()
    y_TO = sum_rows(y_NO, gate_N, *BY_TOKEN, dtype)
    assert y_TO.dtype == dtype and y_TO[:, 0].tolist() == [2 + 6, 5, 1 + 4, 0, 3]
    dy_NO, d_gate_N = torch.autograd.grad(y_TO, (y_NO, gate_N), torch.ones_like(y_TO))
    assert d_gate_N.tolist() == [4, 4, 4, 4, 4, 4, 0]
    assert dy_NO.dtype == dtype and dy_NO[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 0]

    x_TD = torch.ones(5, 4, dtype=dtype)
    x_TD[3] = torch.nan
    assert take_rows(x_TD, *BY_TOKEN, dtype)[:, 0].tolist() == [1, 1, 1, 1, 1, 1, 0]


@pytest.mark.usefixtures("where")
def test_operators_take_no_tokens_and_no_rows() -> None:
    none, fp32 = torch.zeros(0, dtype=torch.int64), torch.float32
    for all_sent in (False, True):
        nothing = ByToken(none, none, torch.zeros(1, dtype=torch.int64), all_sent)
        assert take_rows(torch.zeros(0, 4), *nothing, fp32).shape == (0, 4)
        y_NO, gate_N = rand(0, 4, dtype=fp32), rand(0, dtype=fp32)
        y_TO = sum_rows(y_NO, gate_N, *nothing, fp32)
        assert [g.shape for g in torch.autograd.grad(y_TO.sum(), (y_NO, gate_N))] == [(0, 4), (0,)]
        assert y_TO.shape == (0, 4)
    nothing = nothing._replace(start_T=torch.zeros(4, dtype=torch.int64))
    assert not sum_rows(torch.zeros(0, 4), None, *nothing, fp32).any()


def test_tokens_are_rounded_before_they_are_copied_and_their_gradients_summed_in_their_own_dtype() -> None:
    x_TD = rand(5, 4, dtype=torch.float32)
    x_ND = take_rows(x_TD, *ALL_SENT, torch.bfloat16)
    assert torch.equal(x_ND, x_TD.bfloat16()[ALL_SENT.token_N])
    small = torch.tensor([1, 1, 1, 1, 1, 2**-9, 1], dtype=torch.bfloat16)[:, None].expand(7, 4)  # in bf16 1 + 2^-9 is 1
    (dx_TD,) = torch.autograd.grad(x_ND, x_TD, small)
    assert dx_TD[:, 0].tolist() == [1 + 2**-9, 1, 2, 1, 1]


@pytest.mark.usefixtures("where")
def test_backward_of_gated_sums_makes_one_array_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient itself; everything else is of a block of rows."""
    monkeypatch.setattr(rows, "AT_ONCE", 2 * 6)
    monkeypatch.setattr(rows, "AT_ONCE_ON_A_DEVICE", 2 * 6)
    y_NO, gate_N, g_TO = torch.randn(7, 6), torch.rand(7), torch.randn(5, 6)
    large: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape == (7, 6):
                large.append(str(func))
            return out

    with torch.no_grad(), Watch():
        dy_NO, d_gate_N = gated_backward._init_fn(g_TO, y_NO, gate_N, *BY_TOKEN[::2], False)
    assert [name for name in large if "masked_fill" not in name] == ["aten.new_empty.default"]
    g_NO = g_TO[BY_TOKEN.token_N] * torch.tensor([1, 1, 1, 1, 1, 1, 0])[:, None]
    torch.testing.assert_close(dy_NO, g_NO * gate_N[:, None])
    torch.testing.assert_close(d_gate_N, (g_NO * y_NO).sum(1))
