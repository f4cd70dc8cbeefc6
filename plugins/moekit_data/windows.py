"""Windows: stretches of ``seq + 1`` tokens from one split of one domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moekit.contracts import Batch


class Windows:
    """The token streams of one split, domain by domain, and the windows in them.

    One tensor of the smallest type holds all domains, so that a batch takes one gather. A window never crosses the
    border of its domain's stream, and so of its split.

    Args:
        streams: one per domain, in order of the domain indices; each longer than ``seq`` tokens, or empty.
        seq: tokens in a window.
        num_bytes_V: bytes of text that each token spells.

    Raises:
        ValueError: all streams are empty, or one that is not has at most ``seq`` tokens.
    """

    def __init__(self, streams: Sequence[Tensor], *, seq: int, num_bytes_V: Tensor) -> None:
        lengths = [len(s) for s in streams]
        if not any(lengths) or any(0 < n <= seq for n in lengths):
            raise ValueError(f"streams of {lengths} tokens hold no window of {seq} tokens and the one after")
        self.seq = seq
        self.num_bytes_V = num_bytes_V
        self.lengths = lengths
        self.domains = torch.tensor([d for d, n in enumerate(lengths) if n])
        self._tokens = torch.cat(list(streams))
        self._first = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        self._num_starts = torch.tensor([max(n - seq, 0) for n in lengths])

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` windows: the domain is chosen uniformly, then the start."""
        domain = self.domains[torch.randint(len(self.domains), (count,), generator=generator)]
        start = torch.rand(count, dtype=torch.float64, generator=generator) * self._num_starts[domain]
        return self._take(domain, torch.minimum(start.long(), self._num_starts[domain] - 1))

    def spread(self, per_domain: int, batch: int) -> Iterator[Batch]:
        """Windows evenly spread over each domain's stream, as many for each, interleaved, in batches.

        Args:
            per_domain: windows per domain, at most (``num_spread``).
            batch: windows in a batch; the last may hold fewer.
        """
        count = self.num_spread(per_domain)
        room_D = self._num_starts[self.domains] - 1
        start_ND = torch.arange(count)[:, None] * room_D // max(count - 1, 1)  # a row: one window of each domain
        domain_ND = self.domains.expand(count, -1)
        domain_N, start_N = domain_ND.flatten(), start_ND.flatten()
        for first in range(0, len(start_N), batch):
            yield self._take(domain_N[first : first + batch], start_N[first : first + batch])

    def num_spread(self, per_domain: int) -> int:
        """Windows per domain that ``spread`` yields: no more than fit into the shortest stream without overlap."""
        return min(per_domain, *((n - 1) // self.seq for n in self.lengths if n))

    def _take(self, domain: Tensor, start: Tensor) -> Batch:
        index = (self._first[domain] + start)[:, None] + torch.arange(self.seq + 1)
        window = self._tokens[index].long()
        targets = window[:, 1:]
        return Batch(
            inputs=window[:, :-1],
            targets=targets,
            num_bytes=self.num_bytes_V[targets].sum(),
            domain=domain.clone(),
        )
