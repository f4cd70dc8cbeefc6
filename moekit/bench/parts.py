"""The dispatchers and routers to measure: those asked for, or all that can be made for a shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moekit.bench.shapes import Shape
from moekit.errors import MoekitError, Problem, SpecError, UnknownName
from moekit.registry import current
from moekit.spec.fields import Spec, fields_of
from moekit.spec.kinds import DispatcherSpec, RouterSpec
from moekit.spec.loading import component_spec
from moekit.spec.yaml_text import read

Node = Mapping[str, Any]
EXAMPLES: Final = {
    "dispatchers": "names (loop,grouped), or one as YAML: {use: capacity, factor: 1.0}",
    "routers": "names (topk,dense), or one as YAML: {use: topk, top_k: 1}",
}
"""What each option takes."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Specs by the name they go by, and why others were left out."""

    specs: dict[str, Spec] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)


def nodes_of(texts: Sequence[str], option: str) -> dict[str, Node]:
    """What ``--dispatchers`` and ``--routers`` say: names with commas between them, or one part as YAML.

    Raises:
        MoekitError: no name at all, or braces that hold no map with ``use``.
    """
    found: dict[str, Node] = {}
    for text in texts:
        if not text.lstrip().startswith("{"):
            names = [name for name in map(str.strip, text.split(",")) if name]
            if not names:
                raise MoekitError(f"--{option} '{text}' names nothing\n  expected {EXAMPLES[option]}")
            found |= {name: {"use": name} for name in names}
            continue
        node = read(text, f"--{option} {text}", lines=False).data
        if not isinstance(node.get("use"), str):
            raise MoekitError(f"--{option} '{text}' is no part: it has no 'use'\n  expected {EXAMPLES[option]}")
        found[_called(node)] = node
    return found


def dispatchers_for(shape: Shape, texts: Sequence[str], *, explain: bool = False) -> Chosen:
    """Dispatchers that carry ``token_choice`` among a shape's experts.

    Args:
        shape: its sizes.
        texts: what ``--dispatchers`` says; all that fit when empty.
        explain: whether one of them must be able to say what it chooses, and why.

    Raises:
        SpecError, MoekitError: a dispatcher that was asked for does not exist, or does not fit.
    """
    asked = nodes_of(texts, "dispatchers")
    nodes = asked or {component.name: {"use": component.name} for component in current().components("dispatcher")}
    chosen = Chosen()
    for name, node in nodes.items():
        try:
            chosen.specs[name] = _dispatcher(node, shape)
        except MoekitError as error:
            if asked:
                raise _in_option(error, "dispatchers", name) from error
            chosen.skips[name] = _why(error, "dispatcher", name)
    if explain and not any(_explains(spec) for spec in chosen.specs.values()):
        names = ", ".join(chosen.specs)
        raise MoekitError(f"--explain: none of {names} chooses for itself, so there is nothing to explain")
    return chosen


ROUTERS: Final = {
    "hierarchical": lambda shape: {
        "branches": max(b for b in range(1, shape.E + 1) if shape.E % b == 0 and b * b <= shape.E),
        "top_k": max(1, shape.K // 2),
    },
}
"""Options of routers, by name, for a shape's E and K, where ``top_k`` alone does not say it."""


def routers_for(shape: Shape, texts: Sequence[str]) -> Chosen:
    """Routers that choose K of a shape's E experts (or all, where a router knows no K).

    Raises:
        SpecError, MoekitError: a router that was asked for does not exist, or does not fit.
    """
    asked = nodes_of(texts, "routers")
    chosen = Chosen()
    for component in current().components("router") if not asked else ():
        options: dict[str, Any] = {"top_k": shape.K} if "top_k" in fields_of(component.spec) else {}
        options |= ROUTERS[component.name](shape) if component.name in ROUTERS else {}
        try:
            chosen.specs[component.name] = _router({"use": component.name, **options}, shape)
        except MoekitError as error:
            chosen.skips[component.name] = _why(error, "router", component.name)
    for name, node in asked.items():
        try:
            known = fields_of(current().get("router", node["use"]).spec)
            options = {"top_k": shape.K} if "top_k" in known and "top_k" not in node else {}
            chosen.specs[name] = _router({**node, **options}, shape)
        except MoekitError as error:
            raise _in_option(error, "routers", name) from error
    return chosen


def _dispatcher(node: Node, shape: Shape) -> DispatcherSpec:
    spec = component_spec("dispatcher", node)
    assert isinstance(spec, DispatcherSpec)
    problems = list(spec.check_experts(shape.E))
    if "token_choice" not in spec.forms:
        problems.append(f"takes {', '.join(sorted(spec.forms))}, and the routing is token_choice")
    if problems:
        raise MoekitError("; ".join(problems))
    return spec


def _router(node: Node, shape: Shape) -> RouterSpec:
    spec = component_spec("router", node)
    assert isinstance(spec, RouterSpec)
    if problems := list(spec.check_experts(shape.E)):
        raise MoekitError("; ".join(problems))
    return spec


def _explains(spec: Spec) -> bool:
    return hasattr(current().component_of(spec).load(), "explain")


def _in_option(error: MoekitError, option: str, name: str) -> MoekitError:
    """The same mistake, which says in what option it stands."""
    source = f"--{option} {name}"
    if isinstance(error, SpecError):
        return SpecError(_placed(problem, source) for problem in error.problems)
    if isinstance(error, UnknownName):
        return UnknownName(_placed(error.problem, source))
    return MoekitError(f"{source}: {error}")


def _placed(problem: Problem, source: str) -> Problem:
    return replace(problem, at="" if problem.at == "use" else problem.at, source=source)


def _called(node: Node) -> str:
    options = ", ".join(f"{key}={value}" for key, value in node.items() if key != "use")
    return f"{node['use']}({options})" if options else str(node["use"])


def _why(error: MoekitError, kind: str, name: str) -> str:
    problems = getattr(error, "problems", ())
    said = [problem.what for problem in problems] or [str(error)]
    return "; ".join(text.partition("\n")[0].removeprefix(f"{kind} '{name}' ") for text in said)
