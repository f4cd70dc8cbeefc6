"""The products of a block by oneDNN are those by torch, whatever the buffers hold past the block's rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.compat import has_onednn
from moekit_dispatchers.fused import products as module
from moekit_dispatchers.fused.products import Block, outer_products, products, room, unit_of

SIZES = st.lists(st.integers(1, 70), min_size=1, max_size=4)
X, Y = 12, 8


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN computes products of any size."""
    if not has_onednn():
        pytest.skip("this torch has no oneDNN")
    for name in ("FROM", "OUTER_FROM", "OUTER_SHARED_FROM"):
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setattr(module, "OUTER_ROWS", module.UNIT)


def block_of(sizes: list[int], first: bool = True) -> Block:
    return Block(list(range(len(sizes))), sizes, sum(sizes), first)


@pytest.mark.usefixtures("always")
@settings(max_examples=12, deadline=None)
@given(sizes=SIZES, first=st.booleans())
def test_onednn_multiplies_the_rows_of_the_block_and_no_others(sizes: list[int], first: bool) -> None:
    N, E, block = sum(sizes), len(sizes), block_of(sizes, first)
    a_RX, b_RY, w_EYX = torch.randn(room(N), X), torch.randn(room(N), Y), torch.randn(E, Y, X)
    a_RX[N:] = b_RY[N:] = torch.nan
    found, expected = (
        products(a_RX, w_EYX.unbind(), block, torch.empty(N, Y), onednn=onednn) for onednn in (True, False)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found, expected = torch.ones(E, X, Y), torch.ones(E, X, Y)
    outer_products(a_RX[:N], b_RY[:N], block, found, onednn=True)
    outer_products(a_RX[:N], b_RY[:N], block, expected, onednn=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rounding_leaves_few_numbers_of_rows_and_stays_within_the_buffer() -> None:
    """oneDNN compiles a kernel for each: eight an octave, and at most an eighth more rows from 256 on."""
    rounded = {-(-n // unit_of(n)) * unit_of(n) for n in range(1, 4097)}
    assert len(rounded) <= 8 * 5
    assert all(n + unit_of(n) - 1 < room(n) for n in range(1, 4097))
    assert all(unit_of(n) <= n / 8 for n in range(256, 4097))


@pytest.mark.usefixtures("always")
def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    real = module.onednn_linear

    def counted(x_ND: torch.Tensor, w_HD: torch.Tensor) -> torch.Tensor:
        called.append(len(x_ND))
        return real(x_ND, w_HD)

    monkeypatch.setattr(module, "onednn_linear", counted)
    monkeypatch.setattr(module, "FROM", 40 * X * Y)
    sizes = [39, 40]
    products(torch.randn(room(79), X), torch.randn(2, Y, X).unbind(), block_of(sizes), torch.empty(79, Y), onednn=True)
    outer_products(torch.randn(42, X), torch.randn(42, Y), block_of([31, 11]), torch.empty(2, X, Y), onednn=True)
    assert called == [64]
