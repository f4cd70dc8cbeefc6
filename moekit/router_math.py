"""Arithmetic that every router must get right: logits in full precision, and a top-k with defined ties.

Autocast computes a product of fp32 weights in bf16, and ``torch.topk`` orders equal values differently on different
devices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_KEYS = 512
"""Up to this number of keys ``first_top_k`` sorts on a CPU; above it takes k maxima."""

SORTED_AT_ONCE = 1024
"""Up to this many keys in a row ``first_top_k`` sorts on a GPU, whose sort has one kernel for short rows."""


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """A context manager that disables autocast on ``device``."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def router_logits(
    x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, valid_T: Tensor | None = None
) -> Tensor:
    """``logits_TE = x W^T + b`` in fp32 at least, under autocast too.

    Args:
        x_TD: tokens, any float dtype; not modified.
        weight_ED: one row per expert, any float dtype.
        bias_E: added to every token's logits.
        valid_T: bool, False for padding. Padding is replaced by zeros, so that even NaN there reaches no logit and no
            gradient.

    Returns:
        ``logits_TE`` in the widest of fp32 and the dtypes of tokens and weights.
    """
    dtype = torch.promote_types(torch.promote_types(x_TD.dtype, weight_ED.dtype), torch.float32)
    if valid_T is not None:
        x_TD = x_TD.masked_fill(~valid_T[:, None], 0)
    with autocast_off(x_TD.device):
        return F.linear(x_TD.to(dtype), weight_ED.to(dtype), None if bias_E is None else bias_E.to(dtype))


def first_top_k(key_TE: Tensor, k: int) -> Tensor:
    """``index_TK``: the k largest keys of each row, largest first; of equal keys the lowest index, on every device.

    Rows are the last dimension; any number of dimensions may precede it. A NaN counts as larger than any number, so a
    row of NaN yields indices 0 to k - 1. The indices of a row are distinct if it has k keys above -inf. Not
    differentiable.

    Takes k maxima, because ``max`` is defined to return the first one. Measured on one CPU core in fp32, 2048 rows:
    1.3 ms for 8 of 64 (1.7 with ``argmax``), 3.1 ms for 8 of 256 (4.2). Few keys on a CPU, as in decoding, are sorted
    instead: 8 of 64 for one row take 5 us rather than 26. Both take equally long at about 500 keys (2 of 64, the worst
    case). On a GPU short rows are sorted too: k maxima are 2k + 1 kernels, which small layers wait for.
    """
    key_TE = key_TE.detach()
    if k == 1:
        return key_TE.argmax(-1, keepdim=True)
    on_host = key_TE.device.type == "cpu"
    if on_host and key_TE.numel() <= FEW_KEYS:
        return key_TE.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    if not on_host and k > 2 and key_TE.shape[-1] <= SORTED_AT_ONCE:
        return (
            key_TE.sort(dim=-1, descending=True, stable=True).indices[..., :k].contiguous()
        )  # frees the other indices
    left_TE = key_TE.clone()
    picks = [left_TE.max(-1, keepdim=True).indices]
    while len(picks) < k:
        left_TE.scatter_(-1, picks[-1], -torch.inf)
        picks.append(left_TE.max(-1, keepdim=True).indices)
    return torch.cat(picks, -1)
