import copy

import pytest
import torch
from torch import nn

from moekit.registry import build
from moekit_optimizers.adafactor import Adafactor
from moekit_optimizers.adamw import AdamW
from moekit_optimizers.decay import decays
from moekit_optimizers.sgd import SGD


class Net(nn.Module):
    """A parameter of each kind that the rule of weight decay must tell apart."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.w_up_EHD = nn.Parameter(torch.randn(3, 6, 4))
        self.b_up_EH = nn.Parameter(torch.randn(3, 6))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)
        self.register_buffer("bias_E", torch.zeros(3))


def names_in(model, group):
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def set_gradients(model):
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)


def test_adamw_decays_matrices_alone():
    model = Net()
    optimizer = build(AdamW(weight_decay=0.3), model)
    decayed, plain = optimizer.param_groups
    assert names_in(model, decayed) == {"embed.weight", "linear.weight", "w_up_EHD"}
    assert names_in(model, plain) == {"norm.weight", "norm.bias", "linear.bias", "b_up_EH"}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("block.experts.w_EHD", (2, 3, 4), True),
        ("block.experts.b_EH", (2, 3), False),
        ("block.experts.bias_EH", (2, 3), False),
        ("block.linear.bias", (3,), False),
        ("block.b", (3, 3), False),
        ("base.weight", (3, 3), True),
        ("norm.weight", (3,), False),
    ],
)
def test_matrices_decay_and_vectors_biases_and_scales_do_not(name, shape, expected):
    assert decays(name, nn.Parameter(torch.zeros(shape))) is expected


def test_a_step_of_adamw_is_the_papers():
    """One step from zero state, written out: m and v corrected for bias, then the decoupled decay."""
    model = nn.Linear(3, 2).double()
    spec = AdamW(lr=0.01, betas=[0.9, 0.95], weight_decay=0.5, eps=1e-8)
    optimizer = build(spec, model)
    before = copy.deepcopy(model)
    set_gradients(model)
    optimizer.step()
    for (name, p), old in zip(model.named_parameters(), before.parameters(), strict=True):
        m = (1 - 0.9) * p.grad / (1 - 0.9)
        v = (1 - 0.95) * p.grad**2 / (1 - 0.95)
        kept = 1 - 0.01 * (0.5 if name == "weight" else 0.0)
        torch.testing.assert_close(p, kept * old - 0.01 * m / (v.sqrt() + 1e-8), rtol=1e-12, atol=1e-14)


def test_adamw_without_vectors_has_one_group():
    assert len(build(AdamW(), nn.Linear(2, 2, bias=False)).param_groups) == 1


def test_two_steps_of_sgd_have_momentum():
    model = nn.Linear(3, 2).double()
    optimizer = build(SGD(lr=0.1, momentum=0.5), model)
    start, gradients = copy.deepcopy(model), []
    for _ in range(2):
        set_gradients(model)
        gradients.append([p.grad.clone() for p in model.parameters()])
        optimizer.step()
    for p, old, first, second in zip(model.parameters(), start.parameters(), *gradients, strict=True):
        torch.testing.assert_close(p, old - 0.1 * first - 0.1 * (0.5 * first + second), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", [Adafactor(), AdamW(), SGD()])
def test_a_model_without_trainable_parameters_is_refused(spec):
    with pytest.raises(ValueError, match="ReLU has no trainable parameter"):
        build(spec, nn.ReLU())


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_are_checked(betas):
    with pytest.raises(ValueError, match="must be two numbers, each at least 0 and below 1"):
        AdamW(betas=betas)
