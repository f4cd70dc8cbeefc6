"""Places in queues: what every dispatcher that drops needs. Pairs queue in some order before the expert, or the device,
that they want; whoever stands too far back is dropped. Shapes are static and nothing is read on the host.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from moekit.routing import Routing, TokenChoice
from moekit_dispatchers.sorting import narrow


def places(home_GN: Tensor, queue_GN: Tensor, num_homes: int) -> Tensor:
    """``place_GN``: how many pairs of the same group stand before a pair in the queue of its home.

    Args:
        home_GN: int64, the home that each of a group's N pairs wants; ``num_homes`` for a pair that wants none.
        queue_GN: int64, each group's pairs in the order in which they come.
        num_homes: the number of homes.
    """
    G, N = home_GN.shape
    key_GN = narrow(home_GN.gather(1, queue_GN), num_homes)
    key_GN, order_GN = key_GN.sort(dim=1, stable=True)
    homes_X = torch.arange(num_homes + 1, dtype=key_GN.dtype, device=key_GN.device)
    first_GX = torch.searchsorted(key_GN, homes_X.expand(G, -1).contiguous())
    place_GN = torch.arange(N, device=key_GN.device) - first_GX.gather(1, key_GN.long())
    return torch.empty_like(place_GN).scatter(1, queue_GN.gather(1, order_GN), place_GN)


def affinities(routing: TokenChoice) -> Tensor:
    """``affinity_TK`` of each choice with its expert, to rank by: -inf where a choice does not count, and for NaN."""
    affinity_TK = routing.scores_TE.detach().gather(1, routing.expert_TK)
    ranked_TK = affinity_TK == affinity_TK  # a NaN shall push no other token out
    counts_TK = routing.counts_TK()
    if counts_TK is not None:
        ranked_TK = ranked_TK & counts_TK
    return affinity_TK.where(ranked_TK, -torch.inf)


def as_written(factor: float) -> tuple[int, int]:
    """A factor as the fraction that its decimals say: 1.1 is 11/10, so that 1.1 · 10 is 11 and rounds up to no 12."""
    return Fraction(str(factor)).as_integer_ratio()


def token_choice(routing: Routing, name: str) -> TokenChoice:
    """The routing, if tokens chose.

    Raises:
        ValueError: the routing is of another form.
    """
    if not isinstance(routing, TokenChoice):
        raise ValueError(
            f"the dispatcher '{name}' limits what tokens chose (form token_choice), but the router gave "
            f"'{routing.form}'; the dispatchers 'grouped' (experts choose) and 'soft' take the other forms"
        )
    return routing


def length(num_tokens: int, num_sequences: int) -> int:
    """S: tokens of one sequence.

    Raises:
        ValueError: the tokens are no whole number of equal sequences.
    """
    if num_sequences < 1 or num_tokens % num_sequences:
        raise ValueError(f"{num_tokens} tokens are not {num_sequences} sequences of one length; give num_sequences=")
    return num_tokens // num_sequences
