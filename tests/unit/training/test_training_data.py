"""Training batches depend only on (seed, step, micro-batch, rank); loaders resume exactly; validation shards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from moekit import Batch, Data, DataError, MoekitError, Source
from moekit.contracts import Place
from moekit.spec.recipe import BatchRamp
from moekit.training.data import ENDLESS, StepLoader, ValidationShard, batch_at, noise_seed, padding_like, pinned


class Noise(Data):
    def prepare(self) -> None: ...

    def train_batch(self, generator: torch.Generator) -> Batch:
        x = torch.randint(0, 2**40, (3,), generator=generator)
        return Batch(x, x)

    def validation_batches(self) -> Iterator[Batch]:
        for i in range(5):
            yield Batch(torch.tensor([i]), torch.tensor([i]))


class Rows(Noise):
    """Batches of 20 rows, or of a share of them."""

    def train_batch(self, generator: torch.Generator) -> Batch:
        return self.partial_batch(generator, 1.0)

    def partial_batch(self, generator: torch.Generator, share: float) -> Batch:
        x = torch.randint(0, 2**40, (round(20 * share),), generator=generator)
        return Batch(x, x)


def take(loader: StepLoader, n: int) -> list[list[int]]:
    it = iter(loader)
    return [next(it).inputs.tolist() for _ in range(n)]


class Wrapped(IterableDataset[Batch]):
    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


RAMP = BatchRamp(first=0.2, steps=4)


def test_a_batch_grows_in_a_straight_line_to_the_whole_batch_and_stays() -> None:
    loader = StepLoader(Rows(), seed=5, accumulate=2, ramp=RAMP)
    assert [len(rows) for rows in take(loader, 12)] == [4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 20, 20]
    assert [RAMP.share(step) for step in (0, 2, 4, 100)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert take(StepLoader(Rows(), seed=5), 5)[4] == take(StepLoader(Rows(), seed=5, ramp=RAMP), 5)[4]


def test_a_growing_batch_resumes_exactly() -> None:
    """In the middle of a step of the ramp, too: a batch is a function of the step, and no state is kept."""
    whole = take(StepLoader(Rows(), seed=5, accumulate=2, ramp=RAMP), 10)
    first = StepLoader(Rows(), seed=5, accumulate=2, ramp=RAMP)
    take(first, 3)
    then = StepLoader(Rows(), seed=5, accumulate=2, ramp=RAMP)
    then.load_state_dict(first.state_dict())
    assert take(then, 7) == whole[3:]


def test_data_whose_batches_have_one_size_refuses_to_grow() -> None:
    with pytest.raises(MoekitError, match=r"Noise has batches of one size, so its batch cannot grow\n  expected batch"):
        take(StepLoader(Noise(), seed=5, ramp=RAMP), 1)


def test_a_step_loader_in_worker_processes_is_rejected() -> None:
    """Two workers would return every batch twice. Without workers a wrapped loader works."""
    alone = DataLoader(Wrapped(StepLoader(Noise(), seed=5)), batch_size=None, num_workers=0)
    first = next(iter(alone)).inputs.tolist()
    assert first == take(StepLoader(Noise(), seed=5), 1)[0]
    several = DataLoader(Wrapped(StepLoader(Noise(), seed=5)), batch_size=None, num_workers=2)
    batches: Any = iter(several)
    with pytest.raises(DataError, match="every worker would return every batch"):
        next(batches)
    batches._shutdown_workers()  # otherwise garbage collection in a later test waits ten seconds for them


def test_batches_are_a_function_of_seed_step_and_micro_batch() -> None:
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


@settings(max_examples=6, deadline=None)
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


def test_noise_and_batches_have_different_seeds() -> None:
    """Otherwise a dropout mask would depend on the numbers that chose the tokens."""
    place = {"seed": 3, "step": 5, "micro": 1}
    noise = torch.Generator().manual_seed(noise_seed(**place))
    assert not torch.equal(Noise().train_batch(noise).inputs, batch_at(Noise(), **place).inputs)


def test_a_loaders_length_is_an_epoch() -> None:
    assert len(StepLoader(Noise(), seed=0, accumulate=3, steps=4)) == 12
    assert len(list(StepLoader(Noise(), seed=0, accumulate=3, steps=4))) == 12
    assert len(StepLoader(Noise(), seed=0)) == ENDLESS


def test_a_resumed_epoch_ends_where_it_would_have_ended() -> None:
    first, then = (StepLoader(Noise(), seed=0, accumulate=2, steps=3) for _ in range(2))
    take(first, 3)
    then.load_state_dict(first.state_dict())
    assert [len(list(then)) for _ in range(2)] == [3, 6]


def test_a_position_survives_another_accumulation_count() -> None:
    loader = StepLoader(Noise(), seed=0, accumulate=4)
    take(loader, 8)
    other = StepLoader(Noise(), seed=0, accumulate=1)
    other.load_state_dict(loader.state_dict())
    assert take(other, 1) == [batch_at(Noise(), seed=0, step=2).inputs.tolist()]


def test_ranks_get_the_batches_that_one_rank_accumulates() -> None:
    whole = take(StepLoader(Noise(), seed=4, accumulate=4), 12)
    for world in (1, 2, 4):
        loaders = [StepLoader(Noise(), seed=4, accumulate=4 // world, rank=r, world=world) for r in range(world)]
        shares = [take(loader, 12 // world) for loader in loaders]
        assert [batch for together in zip(*shares, strict=True) for batch in together] == whole


@pytest.mark.parametrize("world", [1, 2, 5, 6])
def test_ranks_split_the_validation_set_evenly(world: int) -> None:
    """All ranks get the same number of batches; the missing ones are padding."""
    shares = [list(ValidationShard(Noise(), rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-5 // world)}
    batches = [batch for together in zip(*shares, strict=True) for batch in together]
    assert [int(batch.inputs) for batch in batches[:5]] == [0, 1, 2, 3, 4]
    assert all(batch.valid is None for batch in batches[:5])
    assert all(batch.valid is not None and not batch.valid.any() for batch in batches[5:])


def test_a_limit_of_validation_batches_is_of_all_ranks_together() -> None:
    shares = [[int(b.inputs) for b in ValidationShard(Noise(), rank, 2, 3) if b.valid is None] for rank in (0, 1)]
    assert shares == [[0, 2], [1]]


def test_padding_like_masks_every_token() -> None:
    tokens = torch.ones(2, 3, dtype=torch.int64)
    pair = padding_like(
        Batch(tokens, tokens, num_bytes=torch.tensor(9), source=Source(torch.ones(2, 5, dtype=torch.int64)))
    )
    assert pair.valid is not None and pair.valid.shape == (2, 3) and not pair.valid.any()
    assert pair.num_bytes == 0 and pair.source is not None and pair.source.valid is not None
    assert pair.source.valid.shape == (2, 5) and not pair.source.valid.any()
    cases = padding_like(Batch(torch.ones(4, 2), torch.ones(4, 1)))
    assert cases.valid is not None and cases.valid.shape == (4,) and cases.source is None


def test_an_empty_validation_set_is_empty_on_every_rank() -> None:
    class Untested(Noise):
        def validation_batches(self) -> Iterator[Batch]:
            return iter(())

    assert [list(ValidationShard(Untested(), rank, 2)) for rank in (0, 1)] == [[], []]


# ---- sampled ahead ---------------------------------------------------------------------------------------------------


class Watched(Noise):
    """Records the thread in which each batch is sampled, and may fail at a step."""

    def __init__(self, fails: int = -1) -> None:
        self.fails = fails
        self.threads: list[str] = []
        self.sampled = threading.Semaphore(0)

    def batch_at(self, place: Place, generator: torch.Generator, share: float = 1.0) -> Batch:
        self.threads.append(threading.current_thread().name.partition("_")[0])
        self.sampled.release()
        if place.step == self.fails:
            raise ValueError("a damaged file")
        return super().batch_at(place, generator, share)


def batch_threads() -> set[threading.Thread]:
    """Those that run now, some perhaps of earlier tests: a thread ends a moment after its last batch."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("batches")}


def test_batches_that_are_sampled_ahead_are_the_same_and_end_with_the_epoch() -> None:
    data, earlier = Watched(), batch_threads()
    loader = StepLoader(data, seed=5, accumulate=2, steps=3, ahead=True)
    whole = [batch.inputs.tolist() for batch in loader]
    assert whole == take(StepLoader(Noise(), seed=5, accumulate=2), 6)
    assert data.threads == [threading.current_thread().name, *["batches"] * 5]
    for thread in batch_threads() - earlier:
        thread.join(60)
    assert batch_threads() <= earlier


def test_one_batch_is_sampled_ahead_and_the_position_is_that_of_the_batch_in_use() -> None:
    data = Watched()
    loader = StepLoader(data, seed=5, ahead=True)
    batches = iter(loader)
    next(batches)
    assert [data.sampled.acquire(timeout=60) for _ in range(2)] == [True, True]
    assert len(data.threads) == 2 and loader.state_dict() == {"step": 1, "micro": 0}
    then = StepLoader(Noise(), seed=5)
    then.load_state_dict(loader.state_dict())
    assert take(then, 1) == [next(batches).inputs.tolist()]
    loader.load_state_dict({"step": 7, "micro": 0})
    assert next(batches).inputs.tolist() == batch_at(Noise(), seed=5, step=7).inputs.tolist()


def test_an_error_of_the_thread_reaches_the_step_that_needs_the_batch_with_its_origin() -> None:
    loader = StepLoader(Watched(fails=2), seed=5, ahead=True)
    batches = iter(loader)
    next(batches), next(batches)
    with pytest.raises(ValueError, match="a damaged file") as error:
        next(batches)
    assert error.traceback[-1].name == "batch_at" and loader.position == 2


def test_a_run_that_is_interrupted_leaves_no_thread() -> None:
    batches, earlier = iter(StepLoader(Watched(), seed=5, ahead=True)), batch_threads()
    next(batches)
    (thread,) = batch_threads() - earlier
    batches.close()  # type: ignore[attr-defined]
    thread.join(60)
    assert not thread.is_alive()


def test_batches_for_a_gpu_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread, for its own GPU. Here nothing is pinned: the calls are recorded."""
    chosen: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append((threading.current_thread().name, device))
    )
    gpu = torch.device("cuda", 3)
    found = take(StepLoader(Noise(), seed=5, ahead=True, gpu=gpu), 3)
    assert found == [[x + 1 for x in batch] for batch in take(StepLoader(Noise(), seed=5), 3)]
    assert chosen == [("batches_0", gpu)]
    tokens = torch.ones(2, 3, dtype=torch.int64)
    batch = pinned(Batch(tokens, tokens.to("meta"), source=Source(tokens, tokens > 0)))
    assert int(batch.inputs[0, 0]) == 2 and batch.targets.is_meta and batch.valid is None and batch.source is not None
    assert int(batch.source.tokens[0, 0]) == 2 and batch.source.valid is not None
