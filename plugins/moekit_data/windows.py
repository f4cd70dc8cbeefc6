"""Windows: stretches of ``seq + 1`` tokens from one split of one domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moekit.contracts import Batch, Tokenizer
from moekit.errors import DataError
from moekit_data.mapped import Stream


class Windows:
    """The token streams of one split, domain by domain, and the windows in them.

    A window never crosses the border of its domain's stream, and so of its split.

    Args:
        streams: one per domain, in order of the domain indices; each longer than ``seq`` tokens, or empty.
        seq: tokens in a window.
        num_bytes_V: bytes of text that each token spells; None where that is not known.
        end: the token that ends a document, if batches are to mark documents.
        weights: how often each domain is sampled, relative to the others; None for equally often.

    Raises:
        ValueError: all streams are empty, or one that is not has at most ``seq`` tokens.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        seq: int,
        num_bytes_V: Tensor | None,
        end: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        lengths = [len(s) for s in streams]
        if not any(lengths) or any(0 < n <= seq for n in lengths):
            raise ValueError(f"streams of {lengths} tokens hold no window of {seq} tokens and the one after")
        self.seq = seq
        self.num_bytes_V = num_bytes_V
        self.end = end
        self.lengths = lengths
        self.domains = torch.tensor([d for d, n in enumerate(lengths) if n])
        self._streams = streams
        self._num_starts = torch.tensor([max(n - seq, 0) for n in lengths])
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)[self.domains]

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` windows: the domain is chosen by its weight, then the start uniformly."""
        if self._weights is None:
            chosen = torch.randint(len(self.domains), (count,), generator=generator)
        else:
            chosen = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        domain = self.domains[chosen]
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
        places = zip(domain.tolist(), start.tolist(), strict=True)
        window = torch.stack([self._streams[d][s : s + self.seq + 1].long() for d, s in places])
        return window_batch(window, self.num_bytes_V, self.end, domain.clone())


def window_batch(
    window: Tensor, num_bytes_V: Tensor | None, end: int | None = None, domain: Tensor | None = None
) -> Batch:
    """Windows as a batch: the targets are the inputs' next tokens.

    The end of a document counts as the first token of the next one, as it is the first input of a decoder: so each
    token is a target once, and the first one of a document is predicted from the end alone.

    Args:
        window: int64 ``[B, S + 1]``.
        num_bytes_V: bytes of text that each token spells; None where that is not known.
        end: the token that ends a document, if documents are to be marked.
        domain: int64 ``[B]``, or None.
    """
    inputs, targets = window[:, :-1], window[:, 1:]
    document = None if end is None else (inputs == end).cumsum(dim=1)
    num_bytes = None if num_bytes_V is None else num_bytes_V[targets].sum()
    return Batch(inputs=inputs, targets=targets, num_bytes=num_bytes, domain=domain, document=document)


def end_of(tokenizer: Tokenizer) -> int:
    """The token that ends a document.

    Raises:
        DataError: the tokenizer has none, so that documents cannot be distinguished.
    """
    if tokenizer.end is None:
        raise DataError(
            f"data.documents=masked: {type(tokenizer).__name__} has no token that ends a document\n"
            "  expected one (option data.tokenizer.end), or documents: joined"
        )
    return tokenizer.end
