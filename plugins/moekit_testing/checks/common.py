"""Checks of every component (description, constructor), and of every one that is built as a torch module: its weights
and state, how it runs, compiles and trains.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck

from moekit.component import imported
from moekit.contracts import Init
from moekit.registry import current
from moekit.spec.fields import fields_of
from moekit_testing.assertions import require, require_equal, require_finite, require_same_state, state_of
from moekit_testing.case import Case, Check, checks_module, normal, seeded
from moekit_testing.fixtures.inputs import Probe


def _contract(name: str) -> Any:
    """The base class of what the targets of a kind make; None for any."""
    kind = current().kinds[name]
    return imported(kind.makes, f"kind '{name}'", "what it makes") if kind.makes else None


def checks(case: Case) -> Iterator[Check]:
    """The checks that apply to a case's kind."""
    yield from (check_description, check_constructor)
    contract = _contract(case.kind)
    if contract is None or not issubclass(contract, nn.Module):
        return
    yield from (check_contract, check_ready_when_built, check_state_dict, check_copies)
    if case.kind in ("router", "expert", "attention"):
        yield check_init_weights
    if case.kind in ("router", "expert", "dispatcher", "balancer"):
        yield check_meta_device
    yield from (check_input_unchanged, check_eval_is_repeatable, check_forward_keeps_no_state)
    if case.kind in ("router", "expert", "dispatcher", "attention"):
        yield check_non_contiguous_input
    if case.kind not in ("model", "objective"):
        yield from (check_compile, check_gradients)
    if case.kind in ("router", "expert", "attention"):
        yield check_gradient_reaches_weights


def probe_for(case: Case) -> Probe:
    """The standard input of a case's kind, by ``probe`` in the module of its checks."""
    probe: Probe = checks_module(case.kind).probe(case)
    return probe


def check_description(case: Case) -> None:
    """Describes itself: a spec of its kind, a summary line, and a line of help for every option.

    ``moekit ls``, ``moekit show`` and the documentation print these.
    """
    spec, base = case.component.spec_class, current().kinds[case.kind].spec_class
    require(
        issubclass(spec, base),
        found=f"{spec.__qualname__}, bases {', '.join(b.__name__ for b in spec.__bases__)}",
        expected=f"a subclass of {base.__name__}",
    )
    require(bool(case.component.summary.strip()), found="an empty summary", expected="Component(summary=one line)")
    for name, info in fields_of(spec).items():
        require(bool(info.help), found=f"option '{name}' without help", expected='option(default, "what it means")')


def check_constructor(case: Case) -> None:
    """Is built from its spec and the layer's sizes, without further arguments.

    All options belong in the spec: other arguments could be neither set from YAML nor saved with a run.
    """
    names = ("spec", *current().kinds[case.kind].context)
    parameters = list(inspect.signature(case.component.load()).parameters.values())
    fits = len(parameters) == len(names) and all(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    )
    require(fits, found=f"({', '.join(str(p) for p in parameters)})", expected=f"({', '.join(names)})")


def check_contract(case: Case) -> None:
    """Builds an instance of its kind's base class: ``moekit.Router``, ``moekit.ExpertBank``, ..."""
    module = case.build_raw()
    contract = _contract(case.kind)
    require(
        isinstance(module, contract),
        found=f"{type(module).__name__}, bases {', '.join(b.__name__ for b in type(module).__bases__)}",
        expected=f"a subclass of moekit.{contract.__name__}",
    )


def check_ready_when_built(case: Case) -> None:
    """Initialises every weight and buffer when built, so that a user of the class alone can train at once."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:  # in this mode torch.empty returns NaN
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        module = case.build_raw()
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            require_finite(tensor, f"'{name}' after construction")


def check_init_weights(case: Case) -> None:
    """Overwrites every matrix in ``init_weights``, with about the given std or with one constant value.

    Constants are 0 for some biases and routers, and 1 for a scale that is stacked over experts.
    """
    module = case.build()
    if not hasattr(module, "init_weights"):
        return
    matrices = {n: p for n, p in module.named_parameters() if p.ndim >= 2}
    with torch.no_grad():
        for parameter in matrices.values():
            parameter.fill_(float("nan"))
    with seeded(0):
        module.init_weights(Init(std=0.02))  # type: ignore[operator]
    for name, parameter in matrices.items():
        require_finite(parameter, f"'{name}' after init_weights")
        size = parameter.double().pow(2).mean().sqrt().item()
        constant = bool((parameter == parameter.flatten()[0]).all())
        require(
            parameter.numel() < 30 or constant or 0.01 < size < 0.04,
            found=f"'{name}' has root mean square {size:.3g} after init_weights(0.02)",
            expected="about 0.02",
        )


def check_state_dict(case: Case) -> None:
    """Is fully restored by its state dict: a differently initialised copy then gives the same outputs."""
    one, other = case.build(0).eval(), case.build(50).eval()
    other.load_state_dict(one.state_dict(), strict=True)
    _require_same_outputs(probe_for(case), one, other, "after load_state_dict")


def check_copies(case: Case) -> None:
    """Can be deep-copied and pickled, for weight averaging and for worker processes."""
    module = case.build().eval()
    _require_same_outputs(probe_for(case), module, copy.deepcopy(module), "of a deep copy")
    _require_same_outputs(probe_for(case), module, pickle.loads(pickle.dumps(module)), "of a pickled copy")


def check_meta_device(case: Case) -> None:
    """Can be built on the meta device and loaded from a state dict afterwards, as large models are.

    State that is neither a parameter nor a persistent buffer would be lost.
    """
    module = case.build().eval()
    with torch.device("meta"):
        empty = case.build_raw().eval()
    for name, tensor in [*empty.named_parameters(), *empty.named_buffers()]:
        require(tensor.device.type == "meta", found=f"'{name}' is on {tensor.device}", expected="meta")
    empty.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*empty.parameters(), *empty.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    empty.load_state_dict(module.state_dict(), strict=True)
    _require_same_outputs(probe_for(case), module, empty, "after construction on meta and load_state_dict")


def _require_same_outputs(probe: Probe, one: nn.Module, other: nn.Module, what: str) -> None:
    __tracebackhide__ = True
    expected, found = (probe.run(m, probe.cast(torch.float32)) for m in (one, other))
    for name, value in expected.items():
        require_equal(found[name], value, f"{name} {what}")


def check_input_unchanged(case: Case) -> None:
    """Does not modify its input, in training either: the caller's residual stream shares the memory."""
    probe, module = probe_for(case), case.build()
    for training in (True, False):
        inputs = probe.cast(torch.float32)
        probe.run(module.train(training), inputs)
        for name, before in probe.cast(torch.float32).items():
            require_equal(inputs[name], before, f"input {name} after forward")


def check_eval_is_repeatable(case: Case) -> None:
    """Is deterministic in eval mode, and uses no random numbers there."""
    probe, module = probe_for(case), case.build().eval()
    with seeded(1):
        before = torch.get_rng_state()
        first = probe.run(module, probe.cast(torch.float32))
        random = not torch.equal(before, torch.get_rng_state())
    with seeded(2):
        second = probe.run(module, probe.cast(torch.float32))
    for name, value in first.items():
        require_equal(second[name], value, f"{name} of a second call in eval mode")
    require(not random, found="use of random numbers in eval mode", expected="none (noise is for training)")


def check_forward_keeps_no_state(case: Case) -> None:
    """Changes no state in forward: activation checkpointing runs forward twice, gradient accumulation k times."""
    probe, module = probe_for(case), case.build()
    for training in (True, False):
        before = state_of(module.train(training))
        probe.run(module, probe.cast(torch.float32))
        require_same_state(before, state_of(module), f"forward in {'training' if training else 'eval'} mode")


def check_non_contiguous_input(case: Case) -> None:
    """Accepts input with any strides: results for a slice or a transposed view equal those for a contiguous copy."""
    probe, module = probe_for(case), case.build().eval()
    inputs = probe.cast(torch.float32)
    expected = probe.run(module, inputs)
    strided = {n: torch.stack([x, x], dim=-1)[..., 0] for n, x in inputs.items()}
    transposed = {n: x.mT.contiguous().mT if x.ndim >= 2 else x for n, x in inputs.items()}
    for given, how in ((strided, "a slice"), (transposed, "a transposed view")):
        for name, value in probe.run(module, given).items():
            require_equal(value, expected[name], f"{name} for {how}", tolerance=1e-5)


def check_compile(case: Case) -> None:
    """Compiles (``torch.compile``, into one graph unless a dispatcher) to eager mode's outputs and gradients."""
    probe, module = probe_for(case), case.build().eval()
    torch.compiler.reset()
    compiled = torch.compile(lambda inputs: probe.run(module, inputs), backend="aot_eager", fullgraph=probe.fullgraph)
    expected, expected_grads = _with_gradients(module, probe, lambda inputs: probe.run(module, inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler warns about its own code
        found, found_grads = _with_gradients(module, probe, compiled)
    torch.compiler.reset()
    for name, value in expected.items():
        require_equal(found[name], value, f"compiled {name}", tolerance=1e-5)
    for name, gradient in expected_grads.items():
        require_equal(found_grads[name], gradient, f"compiled gradient of {name}", tolerance=1e-4)


def check_gradients(case: Case) -> None:
    """Has correct gradients: backward agrees with finite differences in fp64, for the input and every weight."""
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
    """Trains all its weights: the outputs give every parameter a finite, nonzero gradient.

    For a router, the outputs meant are gates, and its own loss if it has one. Matrices that begin with 0, as an
    adapter's second one, get other values first: until they have, what they multiply has no gradient.
    """
    probe, module = probe_for(case), case.build()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(normal(*parameter.shape, seed=3))
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
