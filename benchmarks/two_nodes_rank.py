"""Run by ``two_nodes.py`` in every rank: trains each case, and counts bytes by collective and on the link.

Around each collective all ranks wait for each other, so that what the link's counters show belongs to it. The bytes of
waiting alone are measured and subtracted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

import moekit
from moekit.training.run.prepare import quiet

COUNTED = {
    "all_to_all_single": "tokens",
    "all_gather_single": "gathers",
    "all_gather_into_tensor": "gathers",
    "reduce_scatter_single": "scatters",
    "reduce_scatter_tensor": "scatters",
}
"""Functions of ``torch.distributed``, under the names of this and of other versions, and what they carry."""
EMPTY = 20  # windows without a collective
KNOWN = (1 << 10, 1 << 14, 1 << 18, 1 << 21)  # bytes to each rank in a collective of known size
PER_NODE = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def node_of(rank: int) -> int:
    """The node of a rank."""
    return rank // PER_NODE


def on_link() -> Counter[str]:
    """Bytes that this node has sent and received over the link since it exists, headers included."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "wire":
            numbers = rest.split()
            return Counter(received=int(numbers[0]), sent=int(numbers[8]))
    raise RuntimeError("this process has no interface 'wire': two_nodes.py starts it")


class Counts:
    """What one rank sent to the other node, by collective, and what the link carried meanwhile.

    Attributes:
        tokens: bytes that all-to-alls sent to the other node.
        rows: rows of them, each with its tensor of expert numbers.
        link: bytes in both directions, by what was carried, less those of waiting; as node 0 counts them.
        calls: collectives, by what they carried.
    """

    def __init__(self, waiting: float) -> None:
        self.waiting = waiting
        self.link, self.calls = Counter[str](), Counter[str]()
        self.tokens = self.rows = 0

    @contextmanager
    def window(self, what: str) -> Iterator[None]:
        """Attributes to ``what`` everything that the link carries within."""
        dist.barrier()
        before = on_link()
        dist.barrier()
        yield
        dist.barrier()
        after = on_link()
        dist.barrier()
        self.link[what] += sum((after - before).values()) - round(self.waiting)
        self.calls[what] += 1

    def exchanged(self, x: Tensor, sends: Sequence[int] | None, group: dist.ProcessGroup | None) -> None:
        """Counts an all-to-all's rows and bytes to the other node."""
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        counts = [len(x) // len(ranks)] * len(ranks) if sends is None else sends
        here = node_of(dist.get_rank())
        rows = sum(n for n, rank in zip(counts, ranks, strict=True) if node_of(rank) != here)
        self.tokens += rows * x[:1].nbytes if rows else 0
        self.rows += rows * (x.dtype == torch.int32)


@contextmanager
def counted(counts: Counts) -> Iterator[None]:
    """Replaces the collectives by ones that count."""

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, async_op: bool = False, **more: Any) -> Any:
            if name == "all_to_all_single":
                counts.exchanged(args[1], args[3] if len(args) > 3 else None, more.get("group"))
            with counts.window(COUNTED[name]):
                work = real(*args, async_op=True, **more)
                work.wait()
            return work if async_op else None

        return call

    kept = {name: getattr(dist, name) for name in COUNTED if hasattr(dist, name)}
    for name, real in kept.items():
        setattr(dist, name, counting(name, real))
    try:
        yield
    finally:
        for name, real in kept.items():
            setattr(dist, name, real)


class Measure(L.Callback):
    """Counts from the second step on: the first one makes connections."""

    def __init__(self) -> None:
        self.counts: Counts | None = None
        self.steps = 0
        self.overhead: dict[str, float] = {}

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Measures waiting, and collectives of known size, before the second step."""
        if trainer.global_step == 1 and self.counts is None:
            self.overhead = overhead()
            self.counts = Counts(self.overhead["waiting"])
            self._counting = counted(self.counts)
            self._counting.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """One more step is counted."""
        self.steps += self.counts is not None

    def on_train_end(self, *args: Any) -> None:
        """Counts no more."""
        if self.counts is not None:
            self._counting.__exit__(None, None, None)


def overhead() -> dict[str, float]:
    """Bytes of a window without a collective; of framing per message and per byte, from all-to-alls of known size."""
    empty = Counts(0)
    for _ in range(EMPTY):
        with empty.window("nothing"):
            pass
    waiting = empty.link["nothing"] / EMPTY
    world, over = dist.get_world_size(), []
    crossing = 2 * PER_NODE * (world - PER_NODE)  # messages between nodes, in both directions
    for size in KNOWN:
        known = Counts(waiting)
        x = torch.zeros(world, size, dtype=torch.uint8)
        for _ in range(3):
            with known.window("known"):
                dist.all_to_all_single(torch.empty_like(x), x)
        over.append(known.link["known"] / 3 / crossing - size)
    per_byte = (over[-1] - over[0]) / (KNOWN[-1] - KNOWN[0])
    return {"waiting": waiting, "per message": over[0] - per_byte * KNOWN[0], "per byte": per_byte}


def main(cases: str, out: str) -> None:
    """Trains every case; rank 0 writes what all ranks counted."""
    found = []
    rank = int(os.environ["RANK"])
    with tempfile.TemporaryDirectory() as folder, quiet():
        for case in json.loads(cases):
            measure = Measure()
            moekit.train(
                "deepseek_v3", case["options"], out=Path(folder), compare=False, quiet=True, callbacks=[measure]
            )
            counts = measure.counts
            assert counts is not None
            mine = {
                "node": node_of(rank), "rows": counts.rows, "tokens": counts.tokens, "link": counts.link,
                "calls": counts.calls, "steps": measure.steps, "overhead": measure.overhead,
            }  # fmt: skip
            every: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(every, mine)
            found.append({**case, "ranks": every})
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
