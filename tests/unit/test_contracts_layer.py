"""The contracts of a layer: groups of rows, banks of modules, default sizes and initialisation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moekit.contracts import ExpertBank, Init, LayerDims, init_matrices
from moekit.contracts.layer import Groups, LoopGroups, UniformGroups


@pytest.mark.parametrize("sizes", [[4], [4] * 3, [0] * 3, [0], [1] * 4, [2, 0, 3]])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_nn_linear_expert_by_expert(sizes: list[int], bias: bool) -> None:
    E, N = len(sizes), sum(sizes)
    x_ND, w_EHD = torch.randn(N, 5).double(), torch.randn(E, 6, 5).double()
    b_EH = torch.randn(E, 6).double() if bias else None
    rows = [F.linear(x, w_EHD[e], None if b_EH is None else b_EH[e]) for e, x in enumerate(x_ND.split(sizes))]
    uniform: list[Groups] = [UniformGroups(E, N)] if len(set(sizes)) == 1 else []
    for groups in (LoopGroups(sizes), *uniform):
        assert (groups.num_experts, groups.num_rows) == (E, N)
        torch.testing.assert_close(groups.linear(x_ND, w_EHD, b_EH), torch.cat(rows), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("E", [1, 3])
def test_autocast_reaches_weights_and_biases(E: int) -> None:
    x_ND, w_EHD, b_EH = torch.randn(2 * E, 8), torch.randn(E, 4, 8), torch.randn(E, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert UniformGroups(E, 2 * E).linear(x_ND, w_EHD, b_EH).dtype == torch.bfloat16


@pytest.mark.parametrize("groups", [UniformGroups(2, 6), LoopGroups([3, 3])])
def test_per_row_repeats_each_experts_slice(groups: Groups) -> None:
    assert groups.per_row(torch.tensor([7, 9])).tolist() == [7, 7, 7, 9, 9, 9]
    assert groups.per_row(torch.arange(8).reshape(2, 2, 2)).shape == (6, 2, 2)


@pytest.mark.parametrize("groups", [UniformGroups(3, 6), LoopGroups([2, 2, 2])])
def test_split_gives_each_experts_rows_in_order(groups: Groups) -> None:
    parts = groups.split(torch.arange(12).reshape(6, 2))
    assert [p.tolist() for p in parts] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]


def test_loop_groups_have_any_sizes_and_rows_of_no_expert_are_zero() -> None:
    groups = LoopGroups([2, 0, 1], num_rows=4)
    x_ND = torch.tensor([[1.0], [2.0], [3.0], [torch.nan]])
    w_EHD, b_EH = torch.tensor([[[1.0]], [[10.0]], [[100.0]]]), torch.tensor([[0.1], [0.2], [0.3]])
    torch.testing.assert_close(groups.linear(x_ND, w_EHD, b_EH), torch.tensor([[1.1], [2.1], [300.3], [0.0]]))
    assert groups.per_row(torch.tensor([7, 8, 9])).tolist() == [7, 7, 9, 0]
    assert [part.tolist() for part in groups.split(x_ND)] == [[[1.0], [2.0]], [], [[3.0]]]


def test_uniform_groups_reject_rows_that_cannot_be_shared_evenly() -> None:
    with pytest.raises(ValueError, match=r"^7 rows cannot be shared evenly by 3 experts$"):
        UniformGroups(3, 7)


def test_output_width_defaults_to_input_width() -> None:
    assert LayerDims(dim=4, num_experts=2).out_dim == 4
    assert LayerDims(dim=4, num_experts=2, out_dim=1).out_dim == 1


def test_init_matrices_initialises_weights_and_zeroes_biases() -> None:
    module = nn.Module()
    module.w_EHD = nn.Parameter(torch.zeros(4, 50, 50))
    module.b_EH = nn.Parameter(torch.ones(4, 50))
    module.gain_D = nn.Parameter(torch.ones(50))
    init_matrices(module, Init(std=0.1))
    assert abs(float(module.w_EHD.detach().std()) - 0.1) < 0.01
    assert not module.b_EH.any()
    assert bool((module.gain_D == 1).all())


def test_a_bank_of_modules_runs_each_on_its_own_rows() -> None:
    """Rows of no expert are 0."""
    bank = ExpertBank.from_modules([nn.Linear(3, 1), nn.Linear(3, 1)], out_dim=1)
    x = torch.randn(6, 3)
    experts = list(bank.experts)  # type: ignore[arg-type]
    torch.testing.assert_close(bank(x, UniformGroups(2, 6)), torch.cat([experts[0](x[:3]), experts[1](x[3:])]))
    some = torch.cat([experts[0](x[:1]), experts[1](x[1:4]), torch.zeros(2, 1)])
    torch.testing.assert_close(bank(x, LoopGroups([1, 3], num_rows=6)), some)
