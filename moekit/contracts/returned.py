"""Checks of what the components of a layer return: shapes and dtypes in every pass, values on request.

A routing with a row too few or with transposed gates would otherwise train another model without a word, or end in a
bare message of ``scatter``. Shapes and dtypes are known on the host: checking them reads nothing from a device, takes a
few microseconds, and compiles to nothing. Values are read from the device.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from moekit.errors import PluginError
from moekit.routing import ExpertChoice, LossTerm, Routing, Soft, TokenChoice

DTYPES = {"a bool": torch.bool, "an int64": torch.int64}


def check_routing(router: object, routing: Routing, x_TD: Tensor, valid_T: Tensor | None) -> None:
    """Checks the shapes and dtypes of a routing of T tokens.

    Args:
        router: which returned it.
        routing: what it returned.
        x_TD, valid_T: what it was given.

    Raises:
        PluginError: the first part that is wrong: the router, what was found, what was expected.
    """
    if not isinstance(routing, Routing):
        reject(router, "a Routing: a TokenChoice, ExpertChoice or Soft", type(routing).__name__)
    T = x_TD.shape[0]
    scores_TE = routing.scores_TE
    _expect(router, "scores_TE", scores_TE, "a float", T, "E")
    shape, E = scores_TE.shape, scores_TE.shape[1]
    _expect(router, "logits_TE", routing.logits_TE, "a float", T, E)
    if (routing.valid_T is None) != (valid_T is None):
        reject(router, "valid_T in the routing, as the router was given it", f"valid_T = {shape_of(routing.valid_T)}")
    if routing.valid_T is not None:
        _expect(router, "valid_T", routing.valid_T, "a bool", T)
    if isinstance(routing, TokenChoice):
        _expect(router, "expert_TK", routing.expert_TK, "an int64", T, "K")
        _expect(router, "gate_TK", routing.gate_TK, "a float", *routing.expert_TK.shape)
        if routing.sent_TK is not None:
            _expect(router, "sent_TK", routing.sent_TK, "a bool", *routing.expert_TK.shape)
    elif isinstance(routing, ExpertChoice):
        _expect(router, "token_EC", routing.token_EC, "an int64", E, "C")
        _expect(router, "gate_EC", routing.gate_EC, "a float", *routing.token_EC.shape)
    elif isinstance(routing, Soft):
        _check_soft(router, routing, shape)
    if routing.smooth_load_E is not None:
        _expect(router, "smooth_load_E", routing.smooth_load_E, "a float", E)
    check_loss_term(router, routing.own_loss, "own_loss")


def _check_soft(router: object, routing: Soft, shape: torch.Size) -> None:
    combine_TEP, dispatch_TEP = routing.combine_TEP, routing.dispatch_TEP
    if dispatch_TEP is None:
        _expect(router, "combine_TEP", combine_TEP, "a float", *shape, 1)
    else:
        _expect(router, "combine_TEP", combine_TEP, "a float", *shape, "P")
        _expect(router, "dispatch_TEP", dispatch_TEP, "a float", *combine_TEP.shape)


@torch.no_grad()  # what is saved for backward must not depend on the check, which recomputation omits
def check_routing_values(router: object, routing: Routing, x_TD: Tensor) -> None:
    """Checks indices and gates of a routing with the right shapes. Reads the device.

    Gates may be NaN for a token whose input or logits are not finite: that is a matter of numbers, not of the router.

    Raises:
        PluginError: an index is out of range, a pair is chosen twice, or a gate is not finite although its token's
            input and logits are.
    """
    T, E = routing.scores_TE.shape
    finite_T = x_TD.isfinite().all(1) & routing.logits_TE.isfinite().all(1)
    if routing.valid_T is not None:
        finite_T = finite_T & routing.valid_T
    if isinstance(routing, TokenChoice):
        counts_TK = routing.counts_TK()
        _check_range(router, "expert_TK", routing.expert_TK, E, "experts")
        distinct_TK = routing.expert_TK
        if counts_TK is not None:  # what is not sent may name any expert: here a number of its own for each
            distinct_TK = distinct_TK.where(counts_TK, E + torch.arange(counts_TK.shape[1], device=counts_TK.device))
        _check_distinct(router, "expert_TK", distinct_TK, "expert", "token")
        gate, finite = routing.gate_TK, finite_T[:, None].expand(routing.gate_TK.shape)
        finite = finite if counts_TK is None else finite & counts_TK
    elif isinstance(routing, ExpertChoice):
        _check_range(router, "token_EC", routing.token_EC, T, "tokens")
        _check_distinct(router, "token_EC", routing.token_EC, "token", "expert")
        gate, finite = routing.gate_EC, finite_T[routing.token_EC]
    elif isinstance(routing, Soft):
        gate = routing.combine_TEP
        finite = (finite_T if routing.dispatch_TEP is None else finite_T & finite_T.all())[:, None, None].expand(
            gate.shape
        )
    else:
        return
    wrong = ~gate.isfinite() & finite
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        reject(
            router, "finite gates for tokens whose input and logits are finite", f"a gate of {gate[tuple(at)]} at {at}"
        )


def _check_range(router: object, name: str, index: Tensor, top: int, what: str) -> None:
    if index.numel() and not bool(((index >= 0) & (index < top)).all()):
        found = f"{name} from {int(index.min())} to {int(index.max())}"
        reject(router, f"indices of {what} from 0 to {top - 1}", found)


def _check_distinct(router: object, name: str, index: Tensor, of: str, to: str) -> None:
    ordered = index.sort(dim=1).values
    twice = ordered[:, 1:] == ordered[:, :-1]
    if twice.any():
        row, column = twice.nonzero()[0].tolist()
        found = f"{of} {int(ordered[row, column])} twice in row {row} of {name}"
        reject(router, f"distinct {of}s for every {to}", found)


def check_dispatched(dispatcher: object, out: Any, x_TD: Tensor, num_experts: int, out_dim: int) -> None:
    """Checks what a dispatcher returned for T tokens.

    Raises:
        PluginError: it is not a ``Dispatched``, or a part of it has another shape or dtype.
    """
    if not hasattr(out, "y_TO"):
        reject(dispatcher, "a Dispatched", type(out).__name__)
    T = x_TD.shape[0]
    _expect(dispatcher, "y_TO", out.y_TO, "a float", T, out_dim)
    _expect(dispatcher, "dropped", out.dropped, "an int64")
    if out.expert_TEO is not None:
        _expect(dispatcher, "expert_TEO", out.expert_TEO, "a float", T, num_experts, out_dim)


def check_rows(bank: Any, inputs: tuple[Any, ...], y_NO: Any) -> None:
    """Checks what an experts module returned for N rows: a forward hook of every ``ExpertBank``.

    Raises:
        PluginError: it is not a float tensor ``[N, O]``.
    """
    _expect(bank, "y_NO", y_NO, "a float", inputs[0].shape[0], bank.out_dim)


def check_loss_term(part: object, term: Any, what: str = "its loss") -> None:
    """Checks a loss that a balancer or a router returned; None is one without a loss.

    Raises:
        PluginError: it is not a ``LossTerm`` of a 0-d float value and a number.
    """
    if term is None:
        return
    if not isinstance(term, LossTerm):
        reject(part, f"{what} as a LossTerm(value=..., weight=...) or None", type(term).__name__)
    _expect(part, f"{what}, LossTerm.value", term.value, "a float")
    if not isinstance(term.weight, int | float):
        reject(part, f"{what} with a number as its weight", f"LossTerm.weight = {shape_of(term.weight)}")


def check_bias(balancer: object, bias_E: Any, num_experts: int) -> None:
    """Checks a balancer's selection bias, unless it is None.

    Raises:
        PluginError: it is not a float tensor ``[E]``.
    """
    if bias_E is not None:
        _expect(balancer, "a selection bias", bias_E, "a float", num_experts)


def _expect(part: object, name: str, value: Any, dtype: str, *shape: int | str) -> None:
    """Rejects a value that is not a tensor of this dtype and shape; a letter is a last size that is not prescribed."""
    fits = isinstance(value, Tensor)
    fits = fits and (value.is_floating_point() if dtype == "a float" else value.dtype == DTYPES[dtype])
    if fits and shape and isinstance(shape[-1], str):
        fits = value.ndim == len(shape) and value.shape[:-1] == shape[:-1]
    elif fits:
        fits = value.shape == shape
    if not fits:
        reject(part, f"{dtype} tensor [{', '.join(map(str, shape))}]", f"{name} = {shape_of(value)}")


def shape_of(value: Any) -> str:
    """Dtype and shape of a tensor, and anything else as it is, as messages have it."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def reject(part: object, expected: str, found: str) -> NoReturn:
    """Reports what a component returned.

    Raises:
        PluginError: always; the message names the interface and the class of ``part``.
    """
    bases = (base.__name__ for base in type(part).__mro__[1:] if base.__module__.startswith("moekit.contracts"))
    kind = next(bases, "")
    raise PluginError(f"{kind} {type(part).__name__} returned {found}\n  expected {expected}".lstrip())
