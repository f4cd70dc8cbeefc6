"""A batch depends on (seed, step, micro-batch, rank) alone, and a loader goes on exactly where it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit import Batch, Data, DataError
from moekit.training.sampling import ENDLESS, StepLoader, ValidationShare, batch_at


class Noise(Data):
    def prepare(self) -> None: ...

    def train_batch(self, generator: torch.Generator) -> Batch:
        x = torch.randint(0, 2**40, (3,), generator=generator)
        return Batch(x, x)

    def validation_batches(self) -> Iterator[Batch]:
        for i in range(5):
            yield Batch(torch.tensor([i]), torch.tensor([i]))


def take(loader: StepLoader, n: int) -> list[list[int]]:
    it = iter(loader)
    return [next(it).inputs.tolist() for _ in range(n)]


def test_batches_are_a_function_of_their_place() -> None:
    torch.manual_seed(1)
    first = take(StepLoader(Noise(), seed=5, accumulate=2), 6)
    torch.manual_seed(2)
    assert take(StepLoader(Noise(), seed=5, accumulate=2), 6) == first
    assert batch_at(Noise(), seed=5, step=2, micro=1).inputs.tolist() == first[5]
    others = [
        take(StepLoader(Noise(), seed=6, accumulate=2), 6),
        [batch_at(Noise(), seed=5, step=0, micro=2).inputs.tolist()],
    ]
    flat = [tuple(b) for batches in (first, *others) for b in batches]
    assert len(set(flat)) == len(flat)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_a_loader_resumes_exactly(done: int, accumulate: int, steps: int, endless: bool) -> None:
    def make() -> StepLoader:
        return StepLoader(Noise(), seed=3, accumulate=accumulate, steps=None if endless else steps)

    def run(loader: StepLoader, n: int) -> list[list[int]]:
        out: list[list[int]] = []
        while len(out) < n:  # epoch after epoch
            for batch in loader:
                out.append(batch.inputs.tolist())
                if len(out) == n:
                    break
        return out

    whole = run(make(), done + 7)
    before = make()
    run(before, done)
    after = make()
    after.load_state_dict(before.state_dict())
    assert run(after, 7) == whole[done:]


def test_length_is_an_epoch() -> None:
    assert len(StepLoader(Noise(), seed=0, accumulate=3, steps=4)) == 12
    assert len(list(StepLoader(Noise(), seed=0, accumulate=3, steps=4))) == 12
    assert len(StepLoader(Noise(), seed=0)) == ENDLESS


def test_a_position_survives_another_accumulation_count() -> None:
    loader = StepLoader(Noise(), seed=0, accumulate=4)
    take(loader, 8)
    other = StepLoader(Noise(), seed=0, accumulate=1)
    other.load_state_dict(loader.state_dict())
    assert take(other, 1) == [batch_at(Noise(), seed=0, step=2).inputs.tolist()]


def test_ranks_share_out_what_one_rank_accumulates() -> None:
    whole = take(StepLoader(Noise(), seed=4, accumulate=4), 12)
    for world in (1, 2, 4):
        loaders = [StepLoader(Noise(), seed=4, accumulate=4 // world, rank=r, world=world) for r in range(world)]
        shares = [take(loader, 12 // world) for loader in loaders]
        assert [batch for together in zip(*shares, strict=True) for batch in together] == whole


def test_ranks_share_the_validation_set() -> None:
    shares = [[int(b.inputs) for b in ValidationShare(Noise(), rank, 2)] for rank in (0, 1)]
    assert shares == [[0, 2, 4], [1, 3]]


def test_a_rank_without_a_validation_batch_is_refused_on_every_rank() -> None:
    """Otherwise the others would wait for it for ever."""
    for rank in range(6):
        with pytest.raises(DataError) as caught:
            iter(ValidationShare(Noise(), rank, 6))
        assert str(caught.value) == (
            "the validation set has 5 batches, too few for 6 ranks: give each of them one, by a larger set, smaller "
            "batches or fewer ranks"
        )
    assert [len(list(ValidationShare(Noise(), rank, 5))) for rank in range(5)] == [1] * 5


def test_an_empty_validation_set_is_empty_on_every_rank() -> None:
    class Untested(Noise):
        def validation_batches(self) -> Iterator[Batch]:
            return iter(())

    assert [list(ValidationShare(Untested(), rank, 2)) for rank in (0, 1)] == [[], []]
