"""Attention against loops over positions and heads, in fp64: outputs and the gradient of every weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moekit_models.gqa import GQA
from moekit_models.gqa import naive as gqa_naive
from moekit_models.gqa.module import GroupedQueryAttention
from moekit_models.mla import MLA
from moekit_models.mla import naive as mla_naive
from moekit_models.mla.module import MultiHeadLatentAttention

DIM = 6


def spread(module: nn.Module) -> nn.Module:
    """Norm weights away from 1 and matrices large enough that scores differ."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.7)
    return module


def agree(module: nn.Module, naive: Callable[[Tensor, dict[str, Tensor]], Tensor], length: int) -> None:
    """Both give the same outputs, and the same gradients for the input and every weight."""
    x_BSD = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, length, DIM, dtype=torch.float64)
    weights = dict(module.named_parameters())
    leaves = [x_BSD, *weights.values()]
    fast = module(x_BSD)
    slow = torch.stack([naive(x_SD, weights) for x_SD in x_BSD])
    torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-12)
    for name, a, b in zip(
        ["x", *weights],
        torch.autograd.grad((fast * upstream).sum(), leaves),
        torch.autograd.grad((slow * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, None), (4, 2), (3, 1)])
def test_grouped_query_attention(heads: int, kv_heads: int | None, qk_norm: bool, length: int) -> None:
    spec = GQA(heads=heads, kv_heads=kv_heads, head_dim=4, rope_theta=100.0, qk_norm=qk_norm, norm_eps=1e-3)
    module = spread(GroupedQueryAttention(spec, DIM).double())
    agree(
        module,
        lambda x_SD, w: gqa_naive.attend(x_SD, w, heads=heads, kv_heads=kv_heads or heads, theta=100.0, eps=1e-3),
        length,
    )


# value narrower than, as wide as, and wider than a key: the module pads one or the other
@pytest.mark.parametrize("value_dim", [3, 6, 9])
@pytest.mark.parametrize("query_rank", [None, 5])
@pytest.mark.parametrize("form", [mla_naive.attend, mla_naive.attend_absorbed])
def test_multi_head_latent_attention(
    form: Callable[[Tensor, dict[str, Tensor], mla_naive.Sizes], Tensor], query_rank: int | None, value_dim: int
) -> None:
    spec = MLA(
        heads=2,
        query_rank=query_rank,
        kv_rank=5,
        nope_dim=2,
        rope_dim=4,
        value_dim=value_dim,
        rope_theta=100.0,
        norm_eps=1e-3,
    )
    module = spread(MultiHeadLatentAttention(spec, DIM).double())
    sizes = mla_naive.Sizes(heads=2, kv_rank=5, nope=2, rope=4, value=value_dim, theta=100.0, eps=1e-3)
    agree(module, lambda x_SD, w: form(x_SD, w, sizes), 6)


def test_absorbed_form_is_the_same_function() -> None:
    spec = MLA(heads=3, query_rank=4, kv_rank=5, nope_dim=3, rope_dim=2, value_dim=4)
    weights = dict(spread(MultiHeadLatentAttention(spec, DIM).double()).named_parameters())
    sizes = mla_naive.Sizes(heads=3, kv_rank=5, nope=3, rope=2, value=4, theta=1e4, eps=1e-6)
    x_SD = torch.randn(8, DIM, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            mla_naive.attend_absorbed(x_SD, weights, sizes),
            mla_naive.attend(x_SD, weights, sizes),
            rtol=1e-12,
            atol=1e-12,
        )
