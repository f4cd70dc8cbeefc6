"""The dispatchers and routers to measure: those asked for, or all that can be made for a shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from moekit.bench.shapes import Shape
from moekit.errors import MoekitError
from moekit.registry import current
from moekit.spec.fields import Spec, fields_of
from moekit.spec.kinds import DispatcherSpec, RouterSpec
from moekit.spec.loading import component_spec

Node = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Specs by the name they go by, and why others were left out."""

    specs: dict[str, Spec] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def nodes_of(texts: Sequence[str]) -> dict[str, Node]:
    """What ``--dispatchers`` and ``--routers`` say: names with commas between them, or one part as YAML.

    Raises:
        MoekitError: braces that hold no map with ``use``.
    """
    found: dict[str, Node] = {}
    for text in texts:
        if not text.lstrip().startswith("{"):
            found |= {name: {"use": name} for name in filter(None, map(str.strip, text.split(",")))}
            continue
        try:
            node = yaml.safe_load(text)
        except yaml.YAMLError:
            node = None
        if not isinstance(node, dict) or "use" not in node:
            raise MoekitError(
                f"'{text}' is no part\n  expected names (loop,grouped), or {{use: capacity, factor: 1.0}}"
            )
        found[_called(node)] = node
    return found


def dispatchers_for(shape: Shape, texts: Sequence[str]) -> Chosen:
    """Dispatchers that carry ``token_choice`` among a shape's experts.

    Raises:
        SpecError, MoekitError: a dispatcher that was asked for does not exist, or does not fit.
    """
    asked = nodes_of(texts)
    nodes = asked or {component.name: {"use": component.name} for component in current().components("dispatcher")}
    chosen = Chosen()
    for name, node in nodes.items():
        try:
            spec = component_spec("dispatcher", node)
            assert isinstance(spec, DispatcherSpec)
            problems = list(spec.check_experts(shape.E))
            if "token_choice" not in spec.forms:
                problems.append(f"takes {', '.join(sorted(spec.forms))}, and the routing is token_choice")
            if problems:
                raise MoekitError(f"dispatcher {name}: {'; '.join(problems)}")
            chosen.specs[name] = spec
        except MoekitError as error:
            if asked:
                raise
            chosen.left_out[name] = _why(error, "dispatcher", name)
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
    asked = nodes_of(texts)
    chosen = Chosen()
    for component in current().components("router") if not asked else ():
        options: dict[str, Any] = {"top_k": shape.K} if "top_k" in fields_of(component.spec) else {}
        options |= ROUTERS[component.name](shape) if component.name in ROUTERS else {}
        try:
            chosen.specs[component.name] = _router(component.name, {"use": component.name, **options}, shape)
        except MoekitError as error:
            chosen.left_out[component.name] = _why(error, "router", component.name)
    for name, node in asked.items():
        known = fields_of(current().get("router", str(node["use"])).spec)
        options = {"top_k": shape.K} if "top_k" in known and "top_k" not in node else {}
        chosen.specs[name] = _router(name, {**node, **options}, shape)
    return chosen


def _router(name: str, node: Node, shape: Shape) -> RouterSpec:
    spec = component_spec("router", node)
    assert isinstance(spec, RouterSpec)
    if problems := list(spec.check_experts(shape.E)):
        raise MoekitError(f"router {name}: {'; '.join(problems)}")
    return spec


def _called(node: Node) -> str:
    options = ", ".join(f"{key}={value}" for key, value in node.items() if key != "use")
    return f"{node['use']}({options})" if options else str(node["use"])


def _why(error: MoekitError, kind: str, name: str) -> str:
    problems = getattr(error, "problems", ())
    said = [problem.what for problem in problems] or [str(error).partition("\n")[0]]
    return "; ".join(text.removeprefix(f"{kind} {name}: ").removeprefix(f"{kind} '{name}' ") for text in said)
