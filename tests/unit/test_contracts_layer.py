from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moekit.contracts.layer import UniformGroups


@pytest.mark.parametrize("E, rows", [(1, 4), (3, 4), (3, 0), (1, 0), (4, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_nn_linear_expert_by_expert(E: int, rows: int, bias: bool) -> None:
    x_ND, w_EHD = torch.randn(E * rows, 5).double(), torch.randn(E, 6, 5).double()
    b_EH = torch.randn(E, 6).double() if bias else None
    y_NH = UniformGroups(E, E * rows).linear(x_ND, w_EHD, b_EH)
    want = [F.linear(x_ND[e * rows : (e + 1) * rows], w_EHD[e], None if b_EH is None else b_EH[e]) for e in range(E)]
    torch.testing.assert_close(y_NH, torch.cat(want), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("E", [1, 3])
def test_autocast_reaches_weights_and_biases(E: int) -> None:
    x_ND, w_EHD, b_EH = torch.randn(2 * E, 8), torch.randn(E, 4, 8), torch.randn(E, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert UniformGroups(E, 2 * E).linear(x_ND, w_EHD, b_EH).dtype == torch.bfloat16


def test_per_row_repeats_each_experts_slice() -> None:
    groups = UniformGroups(2, 6)
    assert groups.per_row(torch.tensor([7, 9])).tolist() == [7, 7, 7, 9, 9, 9]
    assert groups.per_row(torch.arange(8).reshape(2, 2, 2)).shape == (6, 2, 2)


def test_split_gives_equal_parts_in_order() -> None:
    parts = UniformGroups(3, 6).split(torch.arange(12).reshape(6, 2))
    assert [p.tolist() for p in parts] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]


def test_rows_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^7 rows cannot be shared evenly by 3 experts$"):
        UniformGroups(3, 7)
