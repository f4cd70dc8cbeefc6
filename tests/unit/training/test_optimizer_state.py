"""An optimizer's state goes by names: into other groups, in another order, and never into other parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moekit.errors import CheckpointError
from moekit.training.optim import save_by_name


def trained(model: nn.Module, *groups: list[str]) -> torch.optim.AdamW:
    """An optimizer over groups of names, a step behind it; each group has a learning rate of its own."""
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [named[n] for n in names], "lr": 0.1 + i} for i, names in enumerate(groups)]
    )
    save_by_name(optimizer, model)
    for i, parameter in enumerate(named.values()):
        parameter.grad = torch.full_like(parameter, 1.0 + i)
    optimizer.step()
    return optimizer


def test_a_state_fits_however_parameters_are_grouped() -> None:
    model = nn.Linear(3, 3)
    saved = trained(model, ["weight"], ["bias"]).state_dict()
    again = trained(nn.Linear(3, 3), ["bias"], ["weight"])
    again.load_state_dict(saved)
    found = again.state_dict()
    for name in ("weight", "bias"):
        for key, value in saved["state"][name].items():
            assert torch.equal(found["state"][name][key], value), (name, key)
    assert [group["params"] for group in found["param_groups"]] == [["bias"], ["weight"]]
    assert [group["lr"] for group in found["param_groups"]] == [1.1, 0.1]


@pytest.mark.parametrize("bias", [False, True])
def test_a_state_of_more_or_fewer_parameters_is_refused(bias: bool) -> None:
    saved = trained(nn.Linear(3, 3, bias=bias), ["weight", "bias"] if bias else ["weight"]).state_dict()
    other = trained(nn.Linear(3, 3, bias=not bias), ["weight"] if bias else ["weight", "bias"])
    with pytest.raises(CheckpointError, match=r"the optimizer's state is of other parameters: bias$"):
        other.load_state_dict(saved)


def test_of_many_other_parameters_a_few_are_named() -> None:
    names = [f"{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    saved = trained(nn.Linear(3, 3), ["weight", "bias"]).state_dict()
    with pytest.raises(CheckpointError, match=r"other parameters: 0.bias, 0.weight, 1.bias, .*, and 5 more$"):
        trained(model, names).load_state_dict(saved)
