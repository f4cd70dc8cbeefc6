"""AdamW's fused kernel: the numbers of the foreach form, on any number of threads, whole or sharded."""

import copy

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from moekit.registry import build
from moekit_optimizers.adamw import AdamW


def stepped(optimizer, model, steps, seed):
    """Takes steps along made-up gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 77), nn.Linear(77, 5, bias=False)).to(dtype)


def equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_fused_kernel_computes_the_foreach_form(dtype):
    model = net(dtype)
    optimizer = build(AdamW(lr=0.01), model)
    plain = copy.deepcopy(model)
    slow = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 * (p.ndim >= 2)} for p in plain.parameters()],
        lr=0.01,
        betas=(0.9, 0.95),
        foreach=True,
    )
    assert optimizer.defaults["fused"]
    for each, moved in ((optimizer, model), (slow, plain)):
        stepped(each, moved, 3, seed=1)
    eps = torch.finfo(dtype).eps
    # bf16: the foreach form rounds its two means and their quotient one by one, a step of .01 each time
    bound = 8 * eps if dtype != torch.bfloat16 else 3 * 0.01 * 8 * eps + 3 * eps
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def test_the_fused_kernel_gives_the_same_numbers_on_any_number_of_threads():
    threads, models = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            model = net()
            stepped(build(AdamW(), model), model, 3, seed=1)
            models.append(model)
    finally:
        torch.set_num_threads(threads)
    assert equal(*models)


def test_complex_parameters_are_updated_without_the_fused_kernel():
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    model = Waves()
    optimizer = build(AdamW(), model)
    model.w.grad = torch.ones_like(model.w)
    optimizer.step()
    assert not optimizer.defaults["fused"]
    assert bool((model.w.real < 1).all())


def test_gradients_may_be_clipped_under_autocast():
    """Trainers refuse that for an optimizer which unscales gradients itself, as torch's fused one does."""
    model = net()
    optimizer = build(AdamW(), model)
    stepped(optimizer, model, 1, seed=1)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1e-3)
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) < 1.01e-3


def test_sharded_parameters_are_updated_as_whole_ones():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = nn.Linear(4, 8, bias=False)
        sharded = nn.Linear(4, 8, bias=False)
        sharded.weight = nn.Parameter(distribute_tensor(whole.weight.detach().clone(), mesh, [Shard(0)]))
        for model in (whole, sharded):
            optimizer = build(AdamW(), model)
            assert optimizer.defaults["fused"]
            for _ in range(3):
                optimizer.zero_grad()
                model.weight.square().sum().backward()
                optimizer.step()
        assert torch.equal(sharded.weight.full_tensor(), whole.weight)
    finally:
        dist.destroy_process_group()
