"""Checks of data: batches sampled with a generator, and a validation set in a fixed order."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from moekit.contracts import Batch, Data
from moekit.contracts.run import NOT_LEARNT
from moekit.spec.kinds import DataSpec
from moekit_testing.assertions import require
from moekit_testing.case import Case, Check, seeded


def checks(case: Case) -> Iterator[Check]:
    """The checks of data."""
    yield from (check_batches, check_sampled_from_generator, check_validation_order, check_fingerprint)


def check_batches(case: Case) -> None:
    """Yields what it claims: int64 ``tokens_BS`` with the next tokens as targets, or float cases with targets.

    A token that is read, but not learnt, has the target ``NOT_LEARNT``.

    Pairs also have a source: int64 ``[B, S]``, whose S may differ.
    """
    data = _prepared(case)
    for batch in (data.train_batch(_generator(0)), next(iter(data.validation_batches()))):
        inputs, targets = batch.inputs, batch.targets
        if case.spec_as(DataSpec).yields in ("tokens", "pairs"):
            require(
                inputs.dtype == targets.dtype == torch.int64 and inputs.ndim == 2 and inputs.shape == targets.shape,
                found=f"inputs {inputs.dtype} {tuple(inputs.shape)}, targets {targets.dtype} {tuple(targets.shape)}",
                expected="int64 [B, S], both",
            )
            both = torch.ones_like(inputs[:, 1:], dtype=torch.bool)
            if batch.valid is not None:
                both = batch.valid[:, 1:] & batch.valid[:, :-1]
            both &= targets[:, :-1] != NOT_LEARNT
            shifted = bool((inputs[:, 1:] == targets[:, :-1])[both].all())
            require(shifted, found="targets that are not the next inputs", expected="targets[:, i] = inputs[:, i + 1]")
            if case.spec_as(DataSpec).yields == "pairs":
                _require_source(batch)
        else:
            require(
                inputs.is_floating_point() and inputs.ndim == 2 and targets.shape[:1] == inputs.shape[:1],
                found=f"inputs {inputs.dtype} {tuple(inputs.shape)}, targets {tuple(targets.shape)}",
                expected="float [T, D] and targets [T, O]",
            )


def _require_source(batch: Batch) -> None:
    source = batch.source
    require(source is not None, found="no source", expected="Batch.source, the encoder's input")
    assert source is not None
    tokens, valid = source
    require(
        tokens.dtype == torch.int64 and tokens.ndim == 2 and len(tokens) == len(batch.inputs),
        found=f"source.tokens {tokens.dtype} {tuple(tokens.shape)} for {len(batch.inputs)} targets",
        expected="int64 [B, S], a row for each target",
    )
    if valid is not None:
        require(
            valid.dtype == torch.bool and valid.shape == tokens.shape and bool((valid[:, 1:] <= valid[:, :-1]).all()),
            found=f"source.valid {valid.dtype} {tuple(valid.shape)}, or padding before valid tokens",
            expected="bool [B, S], padding last",
        )


def check_sampled_from_generator(case: Case) -> None:
    """Samples with the given generator and no other randomness, which makes resuming exact."""
    data = _prepared(case)
    with seeded(0):
        random.seed(0)
        before = torch.get_rng_state(), random.getstate()
        first = data.train_batch(_generator(3))
        data.train_batch(_generator(4))
        used_global = not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate()
        again = data.train_batch(_generator(3))
    require(_same(first, again), found="two batches from equal generators that differ", expected="the same batch")
    require(not used_global, found="use of a global generator", expected="use of the given one only")


def check_validation_order(case: Case) -> None:
    """Yields the same validation batches every time, at least one."""
    data = _prepared(case)
    once, twice = (list(data.validation_batches()) for _ in range(2))
    same = len(once) == len(twice) > 0 and all(_same(a, b) for a, b in zip(once, twice, strict=True))
    require(same, found=f"{len(once)}, then {len(twice)} batches, not the same", expected="the same, one or more")


def check_fingerprint(case: Case) -> None:
    """Has a fingerprint that a second build shares, whatever was sampled before: runs resume only on equal data."""
    data, other = _prepared(case), _prepared(case)
    first = data.fingerprint()
    require(isinstance(first, str) and bool(first), found=repr(first), expected="a checksum as text, not empty")
    data.train_batch(_generator(5))
    next(iter(data.validation_batches()))
    with seeded(1):
        found = [data.fingerprint(), other.fingerprint()]
    require(found == [first, first], found=f"{first}, then {' and '.join(found)}", expected="the same each time")


def _same(one: Batch, other: Batch) -> bool:
    def same(a: object, b: object) -> bool:
        if isinstance(a, tuple) and isinstance(b, tuple):
            return all(map(same, a, b))
        return (a is None and b is None) or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b))

    return same(one, other)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _prepared(case: Case) -> Data:
    data = case.build_raw()
    require(isinstance(data, Data), found=type(data).__name__, expected="a subclass of moekit.Data")
    assert isinstance(data, Data)
    data.prepare()
    return data
