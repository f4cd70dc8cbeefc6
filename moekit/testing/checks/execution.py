"""Checks that hold for every kind that is built as a torch module: how it runs, compiles and learns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck

from moekit.testing.case import (
    Case,
    Check,
    normal,
    require,
    require_equal,
    require_finite,
    require_same_state,
    seeded,
    state_of,
)
from moekit.testing.probes import Probe, probe_for


def checks(case: Case) -> Iterator[Check]:
    """The checks of how a component runs that apply to a case."""
    if case.kind in ("data", "optimizer", "schedule"):
        return
    yield from (check_input_unchanged, check_eval_is_repeatable, check_forward_keeps_no_state)
    if case.kind in ("router", "expert", "dispatcher", "attention"):
        yield check_non_contiguous_input
    if case.kind not in ("model", "objective"):
        yield from (check_compile, check_gradients)
    if case.kind in ("router", "expert", "attention"):
        yield check_gradient_reaches_weights


def check_input_unchanged(case: Case) -> None:
    """Leaves its input as it was, in training too: the caller's residual stream shares the memory."""
    probe, module = probe_for(case), case.build()
    for training in (True, False):
        inputs = probe.cast(torch.float32)
        probe.run(module.train(training), inputs)
        for name, before in probe.cast(torch.float32).items():
            require_equal(inputs[name], before, f"input {name} after forward")


def check_eval_is_repeatable(case: Case) -> None:
    """Gives the same outputs twice in eval mode, and draws no random number there."""
    probe, module = probe_for(case), case.build().eval()
    with seeded(1):
        before = torch.get_rng_state()
        first = probe.run(module, probe.cast(torch.float32))
        drew = not torch.equal(before, torch.get_rng_state())
    with seeded(2):
        second = probe.run(module, probe.cast(torch.float32))
    for name, value in first.items():
        require_equal(second[name], value, f"{name} of a second call in eval mode")
    require(not drew, found="a random number drawn in eval mode", expected="none (noise belongs to training)")


def check_forward_keeps_no_state(case: Case) -> None:
    """Changes nothing in itself when it runs: activation recompute runs forward twice, accumulation k times."""
    probe, module = probe_for(case), case.build()
    for training in (True, False):
        before = state_of(module.train(training))
        probe.run(module, probe.cast(torch.float32))
        require_same_state(before, state_of(module), f"forward in {'training' if training else 'eval'} mode")


def check_non_contiguous_input(case: Case) -> None:
    """Takes input with any strides: a slice or a transposed view gives what its contiguous copy gives."""
    probe, module = probe_for(case), case.build().eval()
    inputs = probe.cast(torch.float32)
    expected = probe.run(module, inputs)
    strided = {n: torch.stack([x, x], dim=-1)[..., 0] for n, x in inputs.items()}
    turned = {n: x.mT.contiguous().mT if x.ndim >= 2 else x for n, x in inputs.items()}
    for given, how in ((strided, "a slice"), (turned, "a transposed view")):
        for name, value in probe.run(module, given).items():
            require_equal(value, expected[name], f"{name} for {how}", tolerance=1e-5)


def check_compile(case: Case) -> None:
    """Compiles (``torch.compile``; one graph, except dispatchers) to the outputs and gradients of eager mode."""
    probe, module = probe_for(case), case.build().eval()
    torch.compiler.reset()
    compiled = torch.compile(lambda inputs: probe.run(module, inputs), backend="aot_eager", fullgraph=probe.fullgraph)
    expected, expected_grads = _with_gradients(module, probe, lambda inputs: probe.run(module, inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, about itself
        found, found_grads = _with_gradients(module, probe, compiled)
    torch.compiler.reset()
    for name, value in expected.items():
        require_equal(found[name], value, f"compiled {name}", tolerance=1e-5)
    for name, gradient in expected_grads.items():
        require_equal(found_grads[name], gradient, f"compiled gradient of {name}", tolerance=1e-4)


def check_gradients(case: Case) -> None:
    """Has the right gradient: backward agrees with finite differences in fp64, for the input and every weight."""
    probe, module = probe_for(case), case.build().double().eval()
    inputs = {n: x.requires_grad_(x.is_floating_point()) for n, x in probe.cast(torch.float64).items()}
    leaves = [x for x in [*inputs.values(), *module.parameters()] if x.requires_grad]

    def outputs(*_: Tensor) -> tuple[Tensor, ...]:
        out = probe.run(module, inputs)
        require(
            all(v.dtype in (torch.float64, torch.int64, torch.bool) for n, v in out.items() if n[-2:] != "_E"),
            found=", ".join(f"{n}: {v.dtype}" for n, v in out.items()),
            expected="fp64 outputs for fp64 input and weights",
        )
        return tuple(v for v in out.values() if v.requires_grad)

    if not outputs():
        return
    try:
        gradcheck(outputs, leaves, fast_mode=True, eps=1e-6, atol=1e-6, rtol=1e-4)
    except GradcheckError as error:
        require(False, found=f"gradcheck: {error}", expected="the gradient of finite differences")


def check_gradient_reaches_weights(case: Case) -> None:
    """Trains every weight it has: the outputs send each parameter a finite gradient, not all 0.

    Of a router's outputs the gates, and a loss of its own where it has one.
    """
    probe, module = probe_for(case), case.build()
    out = probe.run(module, probe.cast(torch.float32))
    trains = ("gate", "combine", "dispatch", "y", "own_loss")
    useful = {n: v for n, v in out.items() if n.startswith(trains) and v.requires_grad}
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        return
    require(bool(useful), found="outputs without a gradient", expected="a gradient to every parameter")
    torch.autograd.backward(torch.stack([(v * normal(*v.shape, seed=9)).sum() for v in useful.values()]).sum())
    for name, parameter in parameters.items():
        require_finite(parameter.grad, f"gradient of '{name}'")
        assert parameter.grad is not None
        largest = parameter.grad.abs().max().item()
        require(largest > 1e-5, found=f"a gradient of {largest:.1g} for '{name}'", expected="one that trains it")


def _with_gradients(module: nn.Module, probe: Probe, run: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    assert callable(run)
    module.zero_grad()
    inputs = {n: x.requires_grad_(x.is_floating_point()) for n, x in probe.cast(torch.float32).items()}
    out: dict[str, Tensor] = run(inputs)
    terms = [(v * normal(*v.shape, seed=9)).sum() for v in out.values() if v.requires_grad]
    if terms:
        torch.autograd.backward(torch.stack(terms).sum())
    named = [*inputs.items(), *module.named_parameters()]
    return out, {n: p.grad.clone() for n, p in named if p.grad is not None}
