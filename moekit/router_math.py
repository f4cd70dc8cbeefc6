"""Arithmetic that every router must get right: logits in full precision, and a top-k whose ties are defined.

Both are easy to get subtly wrong: autocast turns a product of fp32 weights into bf16, and ``torch.topk`` leaves the
order of equal values to the device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_KEYS = 512
"""Keys that ``first_top_k`` sorts; more it searches k times."""


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """A ``with`` block in which autocast changes no dtype on ``device``."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def router_logits(
    x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, valid_T: Tensor | None = None
) -> Tensor:
    """``logits_TE = x W^T + b`` in at least fp32, whatever autocast says.

    Args:
        x_TD: tokens, any float dtype; not changed.
        weight_ED: one row an expert, any float dtype.
        bias_E: added to every token's logits.
        valid_T: bool, False for padding. Padding is read as zeros, so that whatever it holds, NaN even, reaches no
            logit and no gradient.

    Returns:
        ``logits_TE`` in the widest of the arguments' dtypes and fp32.
    """
    dtype = torch.promote_types(torch.promote_types(x_TD.dtype, weight_ED.dtype), torch.float32)
    if valid_T is not None:
        x_TD = x_TD.masked_fill(~valid_T[:, None], 0)
    with autocast_off(x_TD.device):
        return F.linear(x_TD.to(dtype), weight_ED.to(dtype), None if bias_E is None else bias_E.to(dtype))


def first_top_k(key_TE: Tensor, k: int) -> Tensor:
    """``index_TK``: the k largest keys of each row, largest first; the lowest index wins a tie, on every device.

    Rows are the last dimension; there may be more than one before it.

    A NaN counts as larger than any number, so a row of NaN yields indices 0 to k - 1. The indices of a row are
    distinct as long as it holds k keys above -inf. Nothing is differentiated through.

    k rounds of ``max``, which is defined to name the first maximum. Measured on one CPU core in fp32, 2048 rows: 1.3 ms
    for 8 of 64 (1.7 with ``argmax``) and 3.1 ms for 8 of 256 (4.2); ``torch.topk`` leaves ties open. A few rows, as in
    decoding, are sorted all the same, on a CPU: 8 of 64 for one row take 5 us so, and 26 in rounds; it is even at some
    500 keys at the worst (2 of 64).
    """
    key_TE = key_TE.detach()
    if k == 1:
        return key_TE.argmax(-1, keepdim=True)
    if key_TE.numel() <= FEW_KEYS and key_TE.device.type == "cpu":
        return key_TE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    left_TE = key_TE.clone()
    picks = [left_TE.max(-1, keepdim=True).indices]
    while len(picks) < k:
        left_TE.scatter_(-1, picks[-1], -torch.inf)
        picks.append(left_TE.max(-1, keepdim=True).indices)
    return torch.cat(picks, -1)


def top_two_sum(key_TE: Tensor) -> Tensor:
    """The sum of the two largest keys of each row, whichever they are; -inf counts. Rows are the last dimension.

    A NaN counts as larger than any number. Nothing is differentiated through.
    """
    first_T1, index_T1 = key_TE.detach().max(-1, keepdim=True)
    rest_TE = key_TE.detach().scatter(-1, index_T1, -torch.inf)
    return (first_T1 + rest_TE.amax(-1, keepdim=True)).squeeze(-1)


def above_inf(key_TE: Tensor) -> Tensor:
    """The keys with -inf raised to the lowest number, so that -inf means out of bounds alone and k distinct remain."""
    return key_TE.clamp(min=torch.finfo(key_TE.dtype).min)
