"""Components into cases: each with its examples of options, or with what an installed recipe says of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moekit.component import Component
from moekit.contracts import Batch, LayerDims, ModelOutput
from moekit.errors import MoekitError, PluginError, nearest
from moekit.registry import current
from moekit.spec import load
from moekit.spec.fields import Spec, required
from moekit.spec.kinds import ExpertSpec
from moekit_testing.case import DIMS, Case
from moekit_testing.fixtures.inputs import needs_batch

ExampleBatch = Batch | tuple[ModelOutput, Batch]
"""What a model runs on; or a model's output and its batch, for an objective."""


def cases_of(
    components: Iterable[Component],
    examples: Mapping[str, Sequence[Spec]],
    dims: LayerDims | None = None,
    batches: Mapping[str, ExampleBatch] | None = None,
) -> Iterator[Case]:
    """One case for each example of each component. Without an example, options have their defaults.

    Raises:
        MoekitError: an example is for an unknown component, or a component cannot be tested without one.
    """
    components, batches = list(components), batches or {}
    refuse_unknown_components(components, examples, batches)
    for component in components:
        yield from cases_of_one(component, examples, dims, batches)


def examples_in_recipes(components: Iterable[Component]) -> dict[str, list[Spec]]:
    """An example of each component that has options without a default, from the first installed recipe that uses it.

    By ``kind/name``. A component that no recipe uses has none.
    """
    missing: dict[type, str] = {}
    for c in components:
        with contextlib.suppress(PluginError):  # its spec cannot be imported, which its cases report
            missing |= {c.spec_class: f"{c.kind}/{c.name}"} if required(c.spec_class) else {}
    found: dict[str, list[Spec]] = {}
    for recipe in current().recipes if missing else ():
        try:
            specs = list(specs_in(load(recipe.full_name)))
        except MoekitError:  # of another plugin, whose own tests report it
            continue
        for spec in specs:
            if type(spec) in missing:
                found[missing.pop(type(spec))] = [spec]
        if not missing:
            break
    return found


def specs_in(value: Any) -> Iterator[Spec]:
    """Every spec inside a recipe."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from specs_in(inner)
    elif isinstance(value, Spec):
        yield value
        for field in dataclasses.fields(value):
            yield from specs_in(getattr(value, field.name))


def cases_of_one(
    component: Component,
    examples: Mapping[str, Sequence[Spec]],
    dims: LayerDims | None,
    batches: Mapping[str, ExampleBatch],
) -> Iterator[Case]:
    """One case for each example of a component.

    Raises:
        MoekitError: it cannot be tested without an example of its options, or of a batch.
    """
    label = f"{component.kind}/{component.name}"
    specs = list(examples.get(label, examples.get(component.name, ())))
    cls = component.spec_class
    if not specs:
        missing = required(cls)
        if missing:
            raise MoekitError(
                f"{component.kind} '{component.name}' has no default for {', '.join(missing)}: give an example, "
                f"examples={{'{component.name}': [{cls.__name__}({missing[0]}=...)]}}\n"
                f"  in the shell: moekit check {label} {missing[0]}=..."
            )
        specs = [cls()]
    given = batches.get(label, batches.get(component.name))
    batch, output = (given, None) if given is None or isinstance(given, Batch) else (given[1], given[0])
    for number, spec in enumerate(specs, 1):
        takes = "" if given is not None else needs_batch(spec)
        if takes:
            example = "Batch(...)" if component.kind == "model" else "(ModelOutput(...), Batch(...))"
            raise MoekitError(
                f"{component.kind} '{component.name}' takes {takes}, which the kit has no example of: give one, "
                f"batches={{'{component.name}': {example}}}"
            )
        sizes = dims or DIMS.get(component.kind, DIMS["router"])
        if isinstance(spec, ExpertSpec):
            spec = replace(spec, count=sizes.num_experts)
        name = f"{label}.{number}" if len(specs) > 1 else label
        yield Case(component=component, spec=spec, dims=sizes, label=name, batch=batch, output=output)


def refuse_unknown_components(
    components: Sequence[Component], examples: Mapping[str, object], batches: Mapping[str, object]
) -> None:
    """Rejects examples and batches for components that are not tested.

    Raises:
        MoekitError: naming the first, and the nearest name.
    """
    names = [c.name for c in components] + [f"{c.kind}/{c.name}" for c in components]
    refuse_unknown(examples, names, "examples for")
    refuse_unknown(batches, names, "batches for")


def refuse_unknown(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Rejects names that are not tested.

    Raises:
        MoekitError: naming the first, and the nearest name.
    """
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"\n  did you mean '{near}'?" if near else ""
            raise MoekitError(
                f"{what} '{name}', which is not tested here{hint}\n  tested: {', '.join(sorted(set(known)))}"
            )
