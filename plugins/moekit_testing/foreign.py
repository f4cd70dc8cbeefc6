"""Checks of any ``nn.Module`` that routes: routers and mixtures of other libraries, which know nothing of moekit.

They find faults that several public implementations have had: padding counted in loads, gates other than those of the
router's logits, tokens dropped at inference, an input changed in place, a balance loss without effect on the router.
"""

from __future__ import annotations

import copy
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moekit_testing.assertions import CheckFailure, require, require_equal, require_finite
from moekit_testing.case import CheckSkipped, normal, seeded
from moekit_testing.running import Result, Status

TOKENS = 48


class Seen(NamedTuple):
    """What a pass of a foreign module shows. What is None is not checked.

    Attributes:
        y: the output, one row for each token; ``[..., D]``.
        aux: the balance loss, 0-d.
        load_E: tokens that each expert got.
        logits_TE: the router's logits.
        expert_TK: the chosen experts.
        gate_TK: their gates.
    """

    y: Tensor | None = None
    aux: Tensor | None = None
    load_E: Tensor | None = None
    logits_TE: Tensor | None = None
    expert_TK: Tensor | None = None
    gate_TK: Tensor | None = None


def see(module: nn.Module, out: Any) -> Seen:
    """Reads ``y`` or ``(y, aux)``; an ``aux`` of several numbers is ignored.

    Raises:
        TypeError: the output is something else.
    """
    if isinstance(out, Tensor):
        return Seen(y=out)
    if isinstance(out, tuple) and out and isinstance(out[0], Tensor):
        aux = out[1] if len(out) > 1 and isinstance(out[1], Tensor) and out[1].numel() == 1 else None
        return Seen(y=out[0], aux=None if aux is None else aux.reshape(()))
    raise TypeError(
        f"the output is of type {type(out).__name__}, not y or (y, aux): give read=lambda module, out: Seen(y=...)"
    )


def softmax_gates(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """``gate_TK``: the softmax over all experts, of the chosen ones."""
    return logits_TE.softmax(-1).gather(1, expert_TK)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A foreign module and how to use it; the arguments of ``check_foreign``."""

    module: nn.Module
    dim: int
    read: Callable[[nn.Module, Any], Seen] = see
    masked: Callable[[nn.Module, Tensor, Tensor], Any] | None = None
    gates: Callable[[Tensor, Tensor], Tensor] = softmax_gates
    expert: Callable[[nn.Module, int, Tensor], Tensor] | None = None
    router: str = ""
    flat: bool = False

    def fresh(self, *, training: bool) -> nn.Module:
        """A copy of the module, so that no check sees what another has changed."""
        return copy.deepcopy(self.module).train(training)

    def tokens(self, x_TD: Tensor) -> Tensor:
        """Tokens in the shape that the module takes: ``[T, D]`` if ``flat``, else ``[1, T, D]``."""
        return x_TD if self.flat else x_TD[None]

    def run(self, module: nn.Module, x_TD: Tensor, valid_T: Tensor | None = None) -> Seen:
        """One pass, always with the same random numbers, on a copy of the tokens."""
        return self.run_on(module, x_TD.clone(), valid_T)

    def run_on(self, module: nn.Module, x_TD: Tensor, valid_T: Tensor | None = None) -> Seen:
        """One pass on these tokens."""
        x = self.tokens(x_TD)
        with seeded(0):
            if valid_T is None or self.masked is None:
                return self.read(module, module(x))
            return self.read(module, self.masked(module, x, valid_T if self.flat else valid_T[None]))

    def rows(self, y: Tensor) -> Tensor:
        """``y_TO``."""
        return y.reshape(-1, y.shape[-1])

    @cached_property
    def x_TD(self) -> Tensor:
        """Random tokens."""
        return normal(TOKENS, self.dim, seed=1)


def skip_unless(condition: bool, reason: str) -> None:
    """Skips the check unless ``condition`` holds.

    Raises:
        CheckSkipped: it does not hold.
    """
    if not condition:
        raise CheckSkipped(reason)


def check_foreign_input(foreign: Foreign) -> None:
    """Does not modify its input, in training either: the caller's residual stream shares the memory."""
    for training in (True, False):
        x_TD = foreign.x_TD.clone()
        foreign.run_on(foreign.fresh(training=training), x_TD)
        require_equal(x_TD, foreign.x_TD, f"the input after a pass in {'training' if training else 'eval'} mode")


def check_foreign_drops(foreign: Foreign) -> None:
    """Drops no token in eval mode: a token's output is the same alone, among others, and among many like it.

    With a capacity, what a text gets depends on the texts that happen to be in its batch.
    """
    module = foreign.fresh(training=False)
    alone = foreign.run(module, foreign.x_TD[:1]).y
    skip_unless(alone is not None, "it returns no output for each token")
    assert alone is not None
    alone_O = foreign.rows(alone)[0]
    crowds = {"among others": foreign.x_TD, "among tokens equal to it": foreign.x_TD[:1].expand(TOKENS, -1).clone()}
    for where, x_TD in crowds.items():
        y = foreign.run(module, x_TD).y
        assert y is not None
        y_TO = foreign.rows(y) if where != "among others" else foreign.rows(y)[:1]
        zero = int((y_TO == 0).all(1).sum())
        require(
            zero == 0 or bool((alone_O == 0).all()),
            found=f"{zero} of {len(y_TO)} outputs are 0 {where}, in eval mode",
            expected="the output that the token has alone",
        )
        require_equal(y_TO, alone_O.expand_as(y_TO), f"y of a token {where}", tolerance=1e-4)


def check_foreign_padding(foreign: Foreign) -> None:
    """Counts no padding: loads and balance loss with a mask are those of the valid tokens alone.

    Padding is alike, so it all goes to the same experts: counted, it is what is balanced.
    """
    skip_unless(foreign.masked is not None, "no `masked`, so it is not known how it takes a mask")
    valid_T = torch.arange(TOKENS) % 3 != 0
    x_TD = foreign.x_TD.where(valid_T[:, None], 0.0)
    module = foreign.fresh(training=True)
    padded, alone = foreign.run(module, x_TD, valid_T), foreign.run(module, x_TD[valid_T])
    seen = [
        (what, found, expected)
        for what, found, expected in (
            ("loads", padded.load_E, alone.load_E),
            ("balance loss", padded.aux, alone.aux),
        )
        if found is not None and expected is not None
    ]
    skip_unless(bool(seen), "it shows neither loads nor a balance loss")
    for what, found, expected in seen:
        require_equal(found, expected, f"{what} with padding", tolerance=1e-5)


def check_foreign_gates(foreign: Foreign) -> None:
    """Uses the gates that its rule gives for its logits: those that it shows, and those that weigh its output.

    Gates of noised, detached, rounded or biased scores are not what the paper's equation says.
    """
    seen = foreign.run(module := foreign.fresh(training=False), foreign.x_TD)
    skip_unless(seen.logits_TE is not None and seen.expert_TK is not None, "it shows no logits and chosen experts")
    assert seen.logits_TE is not None and seen.expert_TK is not None
    gate_TK = foreign.gates(seen.logits_TE, seen.expert_TK)
    if seen.gate_TK is not None:
        require_equal(seen.gate_TK, gate_TK, "gates", tolerance=1e-5)
    if seen.y is None or foreign.expert is None:
        return
    y_TO = torch.zeros_like(foreign.rows(seen.y))
    for t in range(TOKENS):
        for e, gate in zip(seen.expert_TK[t].tolist(), gate_TK[t], strict=True):
            y_TO[t] = y_TO[t] + gate * foreign.expert(module, e, foreign.x_TD[t : t + 1])[0]
    require_equal(foreign.rows(seen.y), y_TO, "y, against the sum of gate · expert(x)", tolerance=1e-4)


def check_foreign_balance_loss(foreign: Foreign) -> None:
    """Trains the router by its balance loss: the loss has a finite, nonzero gradient to the router's weights."""
    module = foreign.fresh(training=True)
    aux = foreign.run(module, foreign.x_TD).aux
    skip_unless(aux is not None, "it returns no balance loss")
    assert aux is not None
    named = dict(module.named_parameters())
    weights = {n: p for n, p in named.items() if n.startswith(foreign.router)}
    require(bool(weights), found=f"no parameter whose name begins with '{foreign.router}'", expected=", ".join(named))
    require(aux.requires_grad, found="a balance loss without a gradient", expected="one to the router's weights")
    torch.autograd.backward(aux)
    grads = {name: p.grad for name, p in weights.items() if p.grad is not None}
    for name, gradient in grads.items():
        require_finite(gradient, f"the gradient of the balance loss to '{name}'")
    largest = max((float(gradient.abs().max()) for gradient in grads.values()), default=0.0)
    require(
        largest > 1e-9,
        found=f"a gradient of at most {largest:.1g} to {', '.join(weights)}",
        expected="one that changes the routing",
    )


CHECKS = (
    check_foreign_input,
    check_foreign_drops,
    check_foreign_padding,
    check_foreign_gates,
    check_foreign_balance_loss,
)


def check_foreign(
    module: nn.Module,
    *,
    dim: int,
    read: Callable[[nn.Module, Any], Seen] = see,
    masked: Callable[[nn.Module, Tensor, Tensor], Any] | None = None,
    gates: Callable[[Tensor, Tensor], Tensor] = softmax_gates,
    expert: Callable[[nn.Module, int, Tensor], Tensor] | None = None,
    router: str = "",
    flat: bool = False,
) -> list[Result]:
    """Checks a router or a mixture of another library; what it does not show is skipped, with the reason.

    Args:
        module: called with tokens ``[1, T, D]``, or ``[T, D]`` if ``flat``; it stays as it is.
        dim: D, the width of a token.
        read: ``(module, out) -> Seen``: what a pass returned, or left in the module (default: ``y`` or ``(y, aux)``).
        masked: ``(module, x, valid)``: calls it with a mask, which is False for padding.
        gates: ``(logits_TE, expert_TK) -> gate_TK``: the paper's rule (default: softmax over all experts).
        expert: ``(module, e, x_TD) -> y_TO``: one expert alone.
        router: beginning of the names of the router's parameters (default: all parameters of the module).
        flat: whether it takes ``[T, D]``.

    Returns:
        A result for each check; ``moekit_testing.report.show`` prints them.

    Example:
        ``check_foreign(layer, dim=64, router="gate.", masked=lambda layer, x, valid: layer(x, mask=valid))``
    """
    foreign = Foreign(
        module=module, dim=dim, read=read, masked=masked, gates=gates, expert=expert, router=router, flat=flat
    )
    results = []
    for check in CHECKS:
        start = time.perf_counter()
        status, reason = _outcome(check, foreign)
        seconds = time.perf_counter() - start
        label, options = type(module).__name__, f"dim={dim}"
        results.append(Result(label, options, check.__name__, status, reason, seconds))
    return results


def _outcome(check: Callable[[Foreign], None], foreign: Foreign) -> tuple[Status, str]:
    try:
        check(foreign)
    except CheckSkipped as skipped:
        return "skipped", str(skipped)
    except CheckFailure as failure:
        return "failed", textwrap.dedent(str(failure))
    except Exception as error:
        return "failed", f"found     {type(error).__name__}: {error}\nexpected  no error"
    return "passed", ""
