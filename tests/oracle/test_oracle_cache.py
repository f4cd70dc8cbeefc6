"""What attention keeps, and what it makes of it, against loops over positions and heads, in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit import Cache
from moekit_models.gqa import GQA
from moekit_models.gqa import naive as gqa_naive
from moekit_models.gqa.module import GroupedQueryAttention
from moekit_models.mla import MLA
from moekit_models.mla import naive as mla_naive
from moekit_models.mla.module import MultiHeadLatentAttention
from moekit_models.relative import Relative
from moekit_models.relative import naive as relative_naive
from moekit_models.relative.module import RelativeAttention
from moekit_models.yarn import Yarn

DIM = 6
YARN = Yarn(factor=3.0, original=8, beta_fast=2.0, beta_slow=0.5, mscale=0.2)
NUMBERS = {"s": 3.0, "L": 8.0, "alpha": 0.5, "beta": 2.0, "m": 0.2, "by_index": 1.0}
PIECES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def spread(module: nn.Module) -> nn.Module:
    """Norm weights away from 1 and matrices large enough that scores differ."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.7)
    return module.double()


def read_on(module: nn.Module, x_SD: Tensor, sizes: list[int]) -> tuple[Tensor, Cache]:
    """One sequence, in pieces: what comes out, and what is kept."""
    cache = Cache()
    parts = [module(part[None], cache=cache)[0] for part in torch.split(x_SD, sizes)]
    return torch.cat(parts), cache


def held(cache: Cache, *like: Tensor) -> tuple[Tensor, ...]:
    """The rows in a cache, of sizes as those of ``like``."""
    return tuple(row[0] for row in cache.extend(*(t[None, ..., :0, :] for t in like)))


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


# value narrower than, as wide as, and wider than a key
@pytest.mark.parametrize("value_dim", [2, 6, 8])
@pytest.mark.parametrize("yarn", [None, YARN])
@pytest.mark.parametrize("query_rank", [None, 5])
@given(sizes=PIECES)
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_latents(query_rank: int | None, yarn: Yarn | None, value_dim: int, sizes: list[int]) -> None:
    """Both of the paper's forms; of each token the normed latent and the turned key are kept, and nothing else."""
    spec = MLA(heads=2, query_rank=query_rank, kv_rank=5, nope_dim=2, rope_dim=4, value_dim=value_dim,
               rope_theta=100.0, yarn=yarn, norm_eps=1e-3)  # fmt: skip
    module = spread(MultiHeadLatentAttention(spec, DIM))
    n = mla_naive.Sizes(heads=2, kv_rank=5, nope=2, rope=4, value=value_dim, theta=100.0, eps=1e-3,
                        yarn=NUMBERS if yarn else None)  # fmt: skip
    w, x_SD = dict(module.named_parameters()), torch.randn(sum(sizes), DIM, dtype=torch.float64)
    found, cache = read_on(module, x_SD, sizes)
    agree(found, mla_naive.attend_absorbed(x_SD, w, n))
    agree(found, mla_naive.attend(x_SD, w, n))
    kept = [torch.cat([mla_naive.latent(x, w, n), mla_naive.shared_key(x, w, n, t)]) for t, x in enumerate(x_SD)]
    assert cache.numel() == len(x_SD) * (spec.kv_rank + spec.rope_dim)
    agree(held(cache, torch.stack(kept))[0], torch.stack(kept))


@pytest.mark.parametrize("yarn", [None, YARN])
@pytest.mark.parametrize(("heads", "kv_heads", "norm"), [(3, 3, False), (4, 2, True), (3, 1, False)])
@given(sizes=PIECES)
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_keys_and_values(heads: int, kv_heads: int, norm: bool, yarn: Yarn | None, sizes: list[int]) -> None:
    spec = GQA(heads=heads, kv_heads=kv_heads, head_dim=4, rope_theta=100.0, yarn=yarn, qk_norm=norm, norm_eps=1e-3)
    module = spread(GroupedQueryAttention(spec, DIM))
    w, x_SD = dict(module.named_parameters()), torch.randn(sum(sizes), DIM, dtype=torch.float64)
    numbers = NUMBERS if yarn else None
    found, cache = read_on(module, x_SD, sizes)
    agree(found, gqa_naive.attend(x_SD, w, heads=heads, kv_heads=kv_heads, theta=100.0, eps=1e-3, yarn=numbers))
    keys = torch.stack(
        [
            torch.stack([gqa_naive.head(x, w, "k", g, 4, t, 100.0, 1e-3, numbers) for t, x in enumerate(x_SD)])
            for g in range(kv_heads)
        ]
    )
    values = (x_SD @ w["v.weight"].T).unflatten(1, (kv_heads, 4)).transpose(0, 1)
    for kept, expected in zip(held(cache, keys, values), (keys, values), strict=True):
        agree(kept, expected)


@pytest.mark.parametrize("scale", [0.7, 1.0])
@given(sizes=PIECES)
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_distances_go_on(scale: float, sizes: list[int]) -> None:
    """The last bucket begins at 6 here, so that some distances are beyond it."""
    spec = Relative(heads=2, head_dim=4, buckets=8, max_distance=6, scale=scale)
    module = spread(RelativeAttention(spec, DIM))
    w, x_SD = dict(module.named_parameters()), torch.randn(sum(sizes), DIM, dtype=torch.float64)
    found, _ = read_on(module, x_SD, sizes)
    expected = relative_naive.attend(x_SD, w, heads=2, causal=True, buckets=8, max_distance=6, scale=scale)
    agree(found, expected)
