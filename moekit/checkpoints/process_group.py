"""Ranks that write one checkpoint: what they tell each other, as text.

They have a process group of their own, over gloo: a background thread may then wait for the others while training
sends gradients, and nothing that is received is ever unpickled.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from moekit.compat import timeout_of

_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


class Ranks:
    """The processes that take part.

    Args:
        group: theirs; None for one process alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)

    def gather(self, text: str) -> list[str]:
        """What each rank says, in their order; every rank calls this, and waits for all."""
        if self.group is None:
            return [text]
        said = torch.frombuffer(bytearray(b"=" + text.encode()), dtype=torch.uint8)  # never empty
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(said)]), group=self.group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(said)] = said
        heard = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(heard, padded, group=self.group)
        return [bytes(h[1 : int(n)].tolist()).decode() for h, n in zip(heard, sizes, strict=True)]


def all_ranks() -> Ranks:
    """All ranks of the run. Collective: every rank asks for it; the group is made once per process group,
    whose patience it has."""
    everyone = dist.group.WORLD
    if not dist.is_initialized() or everyone is None:
        return Ranks()
    if everyone not in _groups:
        # They wait as long as the run does, and not as long as torch would have them.
        made = dist.new_group(backend="gloo", timeout=timeout_of(everyone))
        assert isinstance(made, dist.ProcessGroup)
        _groups[everyone] = made
    return Ranks(_groups[everyone])
