"""Checks of attention: modules ``x_BSD -> y_BSD``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moekit.contracts import Cache
from moekit.spec.kinds import AttentionSpec
from moekit_testing.assertions import require, require_equal
from moekit_testing.case import ATTENTION_DIM, Case, Check, Omitted, claimed, normal, seeded
from moekit_testing.fixtures.inputs import Probe


def context(case: Case) -> tuple[object, ...]:
    """What the target is called with, after the spec."""
    return (ATTENTION_DIM,)


def probe(case: Case) -> Probe:
    """The standard input of the common checks, and how to run a module on it."""

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y_BSD": module(inputs["x_BSD"])}

    return Probe(inputs={"x_BSD": normal(2, 5, ATTENTION_DIM)}, run=run)


def checks(case: Case) -> Iterator[Check | Omitted]:
    """The checks of attention."""
    yield from (check_attention_shapes, check_attention_causal, check_attention_both_ways, check_sequences_apart)
    yield from claimed(case, "caches", check_attention_cache)
    yield from claimed(case, "takes_documents", check_attention_documents)


def check_attention_shapes(case: Case) -> None:
    """Maps ``[B, S, D]`` to ``[B, S, D]`` for any length, one position included, in fp32 and bf16."""
    for S in (1, 2, 7):
        for dtype in (torch.float32, torch.bfloat16):
            x_BSD = normal(2, S, ATTENTION_DIM).to(dtype)
            y_BSD = case.build().to(dtype)(x_BSD)
            require(
                y_BSD.shape == x_BSD.shape and y_BSD.dtype == dtype,
                found=f"{y_BSD.dtype} {tuple(y_BSD.shape)} for {S} positions",
                expected=f"{dtype} {tuple(x_BSD.shape)}",
            )


def check_attention_causal(case: Case) -> None:
    """Lets a position attend only to itself and earlier ones, so that a language model cannot see its targets."""
    attention, x_BSD = case.build().double().eval(), normal(1, 8, ATTENTION_DIM, dtype=torch.float64)
    changed = x_BSD.clone()
    changed[:, 5:] = normal(1, 3, ATTENTION_DIM, seed=4)
    before, after = attention(x_BSD), attention(changed)
    require_equal(after[:, :5], before[:, :5], "y of positions before the changed ones", tolerance=1e-9)
    require(
        not torch.allclose(attention(torch.cat([changed[:, 5:], x_BSD[:, 5:]], 1))[:, 3:], before[:, 5:]),
        found="the same y for different earlier positions",
        expected="attention to them",
    )


def check_attention_both_ways(case: Case) -> None:
    """With ``causal=False``, attends to later positions too, but never to padding."""
    with seeded(0):
        attention = case.component.load()(case.spec, ATTENTION_DIM, causal=False).double().eval()
    x_BSD = normal(1, 8, ATTENTION_DIM, dtype=torch.float64)
    changed = x_BSD.clone()
    changed[:, 6:] = normal(1, 2, ATTENTION_DIM, seed=4)
    seen = not torch.allclose(attention(x_BSD)[:, :6], attention(changed)[:, :6])
    require(seen, found="no change at earlier positions when later ones change", expected="attention to both sides")
    valid_BS = torch.arange(8)[None] < 6
    before, after = (attention(x, valid_BS=valid_BS)[:, :6] for x in (x_BSD, changed))
    require_equal(after, before, "y of valid positions with different padding", tolerance=1e-9)
    require_equal(before, attention(x_BSD[:, :6]), "y of valid positions with padding", tolerance=1e-9)


def check_sequences_apart(case: Case) -> None:
    """Treats each sequence of a batch independently."""
    attention, x_BSD = case.build().double().eval(), normal(3, 5, ATTENTION_DIM, dtype=torch.float64)
    together = attention(x_BSD)
    for b in range(3):
        require_equal(together[b : b + 1], attention(x_BSD[b : b + 1]), f"y of sequence {b} alone", tolerance=1e-9)


def check_attention_documents(case: Case) -> None:
    """Computes each document of a sequence (``takes_documents``) as if it were alone, causal or not.

    Positions start again in each; which number a document has makes no difference. Omitted where the options rule it
    out (``keeps_documents``).
    """
    if not case.spec_as(AttentionSpec).keeps_documents():
        return
    x_BSD = normal(2, 9, ATTENTION_DIM, dtype=torch.float64)
    lengths = ((4, 1, 4), (2, 7, 0))
    for causal in (True, False):
        with seeded(0):
            attention = case.component.load()(case.spec, ATTENTION_DIM, causal=causal).double().eval()
        document_BS = torch.tensor([[3] * a + [5] * b + [6] * c for a, b, c in lengths])
        y_BSD = attention(x_BSD, document_BS=document_BS)
        for b, each in enumerate(lengths):
            parts = [attention(part) for part in torch.split(x_BSD[b : b + 1], list(each), dim=1) if part.shape[1]]
            expected = torch.cat(parts, dim=1)
            require_equal(y_BSD[b : b + 1], expected, f"y of {each} positions of documents", tolerance=1e-9)


def check_attention_cache(case: Case) -> None:
    """Computes new positions with a cache (``caches``) as it computes all positions at once.

    For any number of new positions, and with interleaved caches: state is kept in the cache, not in the module.
    Omitted where the options rule a cache out (``takes_cache``).
    """
    if not case.spec_as(AttentionSpec).takes_cache():
        return
    attention = case.build().double().eval()
    inputs = [normal(2, 9, ATTENTION_DIM, seed=seed, dtype=torch.float64) for seed in (0, 4)]
    caches = [Cache() for _ in inputs]
    found: list[list[torch.Tensor]] = [[] for _ in inputs]
    with torch.no_grad():
        for parts in zip(*(torch.split(x_BSD, [4, 1, 3, 1], dim=1) for x_BSD in inputs), strict=True):
            for cache, part, y_BSD in zip(caches, parts, found, strict=True):
                y_BSD.append(attention(part, cache=cache))
        for x_BSD, y_BSD in zip(inputs, found, strict=True):
            expected = attention(x_BSD)
            require_equal(torch.cat(y_BSD, dim=1), expected, "y of 4, 1, 3, 1 new positions", tolerance=1e-9)
