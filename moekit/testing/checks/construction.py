"""Checks that hold for every kind that is built as a torch module: how it is made, kept and copied."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator

import torch
from torch import nn

from moekit.contracts import (
    Balancer,
    Dispatcher,
    ExpertBank,
    Init,
    Model,
    Objective,
    Router,
)
from moekit.spec.fields import fields_of
from moekit.spec.recipe import KINDS
from moekit.testing.case import (
    Case,
    Check,
    require,
    require_equal,
    require_finite,
    seeded,
)
from moekit.testing.probes import Probe, probe_for

CONTRACTS: dict[str, type] = {
    "router": Router,
    "expert": ExpertBank,
    "dispatcher": Dispatcher,
    "balancer": Balancer,
    "attention": nn.Module,
    "model": Model,
    "objective": Objective,
}


def checks(case: Case) -> Iterator[Check]:
    """The checks of how a component is made and kept that apply to a case."""
    yield from (check_description, check_constructor)
    if case.kind not in CONTRACTS:
        return
    yield from (check_contract, check_ready_when_built, check_state_dict, check_copies)
    if case.kind in ("router", "expert", "attention"):
        yield check_init_weights
    if case.kind in ("router", "expert", "dispatcher", "balancer"):
        yield check_meta_device


def check_description(case: Case) -> None:
    """Says what it is: a frozen spec of its kind, a summary line, and one line of help for every option.

    ``moekit ls``, ``moekit show`` and the documentation are printed from these; a frozen spec cannot drift from what
    a run has saved.
    """
    spec = case.component.spec
    require(
        issubclass(spec, KINDS[case.kind]) and spec.__dataclass_params__.frozen,  # type: ignore[attr-defined]
        found=f"{spec.__qualname__}, bases {', '.join(b.__name__ for b in spec.__bases__)}",
        expected=f"@dataclass(frozen=True, kw_only=True), a subclass of {KINDS[case.kind].__name__}",
    )
    require(bool(case.component.summary.strip()), found="an empty summary", expected="Component(summary=one line)")
    for name, info in fields_of(spec).items():
        require(bool(info.help), found=f"option '{name}' without help", expected='option(default, "what it means")')


def check_constructor(case: Case) -> None:
    """Is built from its spec and the layer's sizes, and takes no other argument.

    Options live in the spec alone: an argument beside it could not be set from YAML, nor saved with a run.
    """
    wanted = {
        "attention": "(spec, dim, causal)",
        "model": "(spec)",
        "objective": "(spec)",
        "data": "(spec)",
        "optimizer": "(spec, model)",
        "schedule": "(spec, total_steps)",
    }.get(case.kind, "(spec, dims)")
    parameters = list(inspect.signature(case.component.load()).parameters.values())
    fit = len(parameters) == wanted.count(",") + 1 and all(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    )
    require(fit, found=f"({', '.join(str(p) for p in parameters)})", expected=wanted)


def check_contract(case: Case) -> None:
    """Builds an instance of its kind's contract: a subclass of ``moekit.Router``, ``moekit.ExpertBank``, ..."""
    module = case.build_raw()
    contract = CONTRACTS[case.kind]
    require(
        isinstance(module, contract),
        found=f"{type(module).__name__}, bases {', '.join(b.__name__ for b in type(module).__bases__)}",
        expected=f"a subclass of moekit.{contract.__name__}",
    )


def check_ready_when_built(case: Case) -> None:
    """Leaves no weight or buffer uninitialised, so that a user who builds it by hand can train at once."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:  # in this mode torch.empty yields NaN
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
    """Draws every matrix anew when ``init_weights`` is called, at about the std asked for, or sets it to one value.

    (To 0, as a bias or a router may start; to 1, as a scale stacked over experts does.)
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
        one_value = bool((parameter == parameter.flatten()[0]).all())
        require(
            parameter.numel() < 30 or one_value or 0.01 < size < 0.04,
            found=f"'{name}' has root mean square {size:.3g} after init_weights(0.02)",
            expected="about 0.02",
        )


def check_state_dict(case: Case) -> None:
    """Comes back whole from its state dict: a second one, drawn otherwise, then gives the same outputs."""
    one, other = case.build(0).eval(), case.build(50).eval()
    other.load_state_dict(one.state_dict(), strict=True)
    _require_same_outputs(probe_for(case), one, other, "after load_state_dict")


def check_copies(case: Case) -> None:
    """Survives ``copy.deepcopy`` and pickling, as averaging of weights and worker processes need."""
    module = case.build().eval()
    _require_same_outputs(probe_for(case), module, copy.deepcopy(module), "of a deep copy")
    _require_same_outputs(probe_for(case), module, pickle.loads(pickle.dumps(module)), "of a pickled copy")


def check_meta_device(case: Case) -> None:
    """Can be built on the meta device and filled from a state dict afterwards.

    Large models are built so. What is neither a parameter nor a persistent buffer would be lost on the way.
    """
    module = case.build().eval()
    with torch.device("meta"):
        empty = case.build_raw().eval()
    for name, tensor in [*empty.named_parameters(), *empty.named_buffers()]:
        require(tensor.device.type == "meta", found=f"'{name}' lies on {tensor.device}", expected="meta")
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
