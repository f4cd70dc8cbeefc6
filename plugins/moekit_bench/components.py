"""The dispatchers and routers to measure: those requested, or all that fit a shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moekit.errors import MoekitError, Problem, SpecError, UnknownName
from moekit.registry import current
from moekit.spec.fields import Spec, fields_of
from moekit.spec.kinds import DispatcherSpec, RouterSpec
from moekit.spec.loading import component_spec
from moekit.spec.tree import read
from moekit_bench.request import Shape

Node = Mapping[str, Any]
EXPECTED: Final = {
    "dispatchers": "names (loop,grouped), or one as YAML: {use: capacity, factor: 1.0}",
    "routers": "names (topk,dense), or one as YAML: {use: topk, top_k: 1}",
}
"""What each option takes."""

ROUTER_OPTIONS: Final[Mapping[str, Callable[[Shape], Node]]] = {
    "hierarchical": lambda shape: {
        "branches": max(b for b in range(1, shape.E + 1) if shape.E % b == 0 and b * b <= shape.E),
        "top_k": max(1, shape.K // 2),
    },
}
"""By router: options that choose K of a shape's E experts, where ``top_k: K`` is not enough."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Specs by the name of their row, and the skipped components with the reason."""

    specs: dict[str, Spec] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)


def nodes_of(texts: Sequence[str], option: str) -> dict[str, Node]:
    """Parses ``--dispatchers`` or ``--routers``: names separated by commas, or one component as YAML.

    Raises:
        MoekitError: no name, or YAML that is not a map with ``use``.
    """
    found: dict[str, Node] = {}
    for text in texts:
        if not text.lstrip().startswith("{"):
            names = [name for name in map(str.strip, text.split(",")) if name]
            if not names:
                raise MoekitError(f"--{option} '{text}' has no name\n  expected {EXPECTED[option]}")
            found |= {name: {"use": name} for name in names}
            continue
        node = read(text, f"--{option} {text}", lines=False).data
        if not isinstance(node.get("use"), str):
            raise MoekitError(f"--{option} '{text}' has no 'use'\n  expected {EXPECTED[option]}")
        found[_name_of(node)] = node
    return found


def dispatchers_for(shape: Shape, texts: Sequence[str], *, explain: bool = False) -> Selection:
    """Dispatchers that take ``token_choice`` among a shape's experts: those in ``texts``, or if empty all that fit.

    With ``explain``, one of them must be able to explain what it chooses.

    Raises:
        SpecError, MoekitError: a requested dispatcher does not exist or does not fit, or none can explain.
    """
    nodes = nodes_of(texts, "dispatchers")
    selection = _select("dispatcher", nodes, lambda node: _checked("dispatcher", node, shape))
    if explain and not any(hasattr(current().component_of(s).load(), "explain") for s in selection.specs.values()):
        names = ", ".join(selection.specs)
        raise MoekitError(f"--explain: none of {names} chooses for itself, so there is nothing to explain")
    return selection


def routers_for(shape: Shape, texts: Sequence[str]) -> Selection:
    """Routers that choose K of a shape's E experts; a router without the option ``top_k`` chooses by its own rule.

    Raises:
        SpecError, MoekitError: a requested router does not exist, or does not fit.
    """
    requested = nodes_of(texts, "routers")

    def make(node: Node) -> Spec:
        name = node["use"]
        options: Node = {"top_k": shape.K} if "top_k" in fields_of(current().get("router", name).spec_class) else {}
        if not requested and name in ROUTER_OPTIONS:
            options = ROUTER_OPTIONS[name](shape)
        return _checked("router", {"use": name, **options, **node}, shape)

    return _select("router", requested, make)


def _select(kind: str, requested: Mapping[str, Node], make: Callable[[Node], Spec]) -> Selection:
    """Makes the requested components, or all of a kind; of the latter those that do not fit are skipped."""
    selection = Selection()
    for name, node in (requested or {c.name: {"use": c.name} for c in current().components(kind)}).items():
        try:
            selection.specs[name] = make(node)
        except MoekitError as error:
            if requested:
                raise _in_option(error, f"--{kind}s {name}") from error
            selection.skips[name] = _reason(error, kind, name)
    return selection


def _checked(kind: str, node: Node, shape: Shape) -> Spec:
    spec = component_spec(kind, node)
    assert isinstance(spec, DispatcherSpec | RouterSpec)
    problems = list(spec.check_experts(shape.E))
    if isinstance(spec, RouterSpec) and spec.needs_tokens:
        problems.append("reads token ids, and tokens to measure with have none")
    if isinstance(spec, DispatcherSpec) and "token_choice" not in spec.forms:
        problems.append(f"takes {', '.join(sorted(spec.forms))}, and the routing is token_choice")
    if problems:
        raise MoekitError("; ".join(problems))
    return spec


def _in_option(error: MoekitError, source: str) -> MoekitError:
    """The same error, located in a command-line option."""

    def located(problem: Problem) -> Problem:
        return replace(problem, at="" if problem.at == "use" else problem.at, source=source)

    if isinstance(error, SpecError):
        return SpecError(map(located, error.problems))
    if isinstance(error, UnknownName):
        return UnknownName(located(error.problem))
    return MoekitError(f"{source}: {error}")


def _name_of(node: Node) -> str:
    options = ", ".join(f"{key}={value}" for key, value in node.items() if key != "use")
    return f"{node['use']}({options})" if options else str(node["use"])


def _reason(error: MoekitError, kind: str, name: str) -> str:
    problems = getattr(error, "problems", ())
    lines = [problem.what for problem in problems] or [str(error)]
    return "; ".join(line.partition("\n")[0].removeprefix(f"{kind} '{name}' ") for line in lines)
