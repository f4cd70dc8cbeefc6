"""Turns components into pytest tests: which checks apply, the tests' names, and the text of failures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from moekit.component import Component
from moekit.contracts import Batch, LayerDims, ModelOutput
from moekit.errors import MoekitError, nearest
from moekit.spec.fields import Spec, required
from moekit.spec.kinds import ExpertSpec
from moekit_testing.assertions import CheckFailure
from moekit_testing.case import DIMS, Case, Check, checks_module
from moekit_testing.checks import common
from moekit_testing.fixtures.inputs import needs_batch

ExampleBatch = Batch | tuple[ModelOutput, Batch]
"""What a model runs on; or a model's output and its batch, for an objective."""


@dataclass(frozen=True)
class BoundCheck:
    """One check of one case. Call it to run the check."""

    check: Check
    case: Case

    @property
    def name(self) -> str:
        """The name of the check's function: ``check_padding``."""
        return self.check.__name__

    def __call__(self) -> None:
        """Runs the check.

        Raises:
            CheckFailure: it failed, or raised another exception.
        """
        __tracebackhide__ = True
        try:
            self.check(self.case)
        except CheckFailure as failure:
            raise CheckFailure(self._message(str(failure))) from None
        except Exception as error:
            found = f"  found     {type(error).__name__}: {error}\n  expected  no error (see its traceback above)"
            raise CheckFailure(self._message(found)) from error

    def _message(self, finding: str) -> str:
        demand = inspect.cleandoc(self.check.__doc__ or "").replace("\n", "\n            ")
        return (
            f"{self.case.label} fails {self.name}\n"
            f"  demanded  {demand}\n{finding}\n  options   {self.case.spec}\n  checked by {self.check.__module__}"
        )


def checks_for(case: Case) -> list[BoundCheck]:
    """All checks that apply to the case's kind and claims, in order."""
    own = checks_module(case.kind)
    files = [common, *([own] if own else [])]
    return [BoundCheck(check, case) for file in files for check in file.checks(case)]


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
    _refuse_unknown_components(components, examples, batches)
    for component in components:
        yield from _cases(component, examples, dims, batches)


def parametrize_checks(
    components: Iterable[Component],
    *,
    examples: Mapping[str, Sequence[Spec]] | None = None,
    batches: Mapping[str, ExampleBatch] | None = None,
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
    dims: LayerDims | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that parametrizes a test over all checks of all components, as its argument ``check``.

    A component that cannot be tested, for want of an example or a batch, is one failing test; the others run.

    Args:
        components: the components to test.
        examples: specs to build a component with, by its name (or ``kind/name``), for options without a default or to
            test several settings. Tests are then numbered: ``router/mine.1``, ``router/mine.2``.
        batches: by name (or ``kind/name``): a ``Batch`` for a model that takes something else than tokens, pairs or
            cases, and a ``ModelOutput`` with its ``Batch`` for an objective that takes another output. If a model's
            batch has a valid mask, the content of its padding must not matter.
        expected_failures: ``{"router/mine": {"check_compile": "why"}}``: checks known to fail, with the reason.
            ``router/mine.2`` selects one example. A check that passes nevertheless fails the test.
        dims: sizes of the layer (D, E, O); default: the kit's own, unequal ones for each kind.

    Raises:
        MoekitError: examples, batches or expected failures name something that is not tested.
    """
    components, examples, batches = list(components), examples or {}, batches or {}
    _refuse_unknown_components(components, examples, batches)
    known = {name: dict(checks) for name, checks in (expected_failures or {}).items()}
    bound: list[BoundCheck] = []
    failed: dict[str, MoekitError] = {}
    for component in components:
        try:
            bound += [check for case in _cases(component, examples, dims, batches) for check in checks_for(case)]
        except MoekitError as error:
            failed[f"{component.kind}/{component.name}"] = error
    whole = {b.case.label: f"{b.case.kind}/{b.case.component.name}" for b in bound}
    _refuse_unknown(known, [*whole.keys(), *whole.values(), *failed], "expected failures of")
    for name, reasons in known.items():
        run = [b.name for b in bound if name in (b.case.label, whole[b.case.label])]
        if run:
            _refuse_unknown(reasons, run, f"an expected failure of '{name}' in")
    params = []
    for b in bound:
        reasons = known.get(whole[b.case.label], {}) | known.get(b.case.label, {})
        marks = (
            [pytest.mark.xfail(reason=reasons[b.name], strict=True, raises=CheckFailure)] if b.name in reasons else []
        )
        params.append(pytest.param(b, id=f"{b.case.label}-{b.name}", marks=marks))
    params += [pytest.param(_failing(error), id=f"{label}-example") for label, error in failed.items()]
    return pytest.mark.parametrize("check", params)


def _failing(error: MoekitError) -> Callable[[], None]:
    def check() -> None:
        __tracebackhide__ = True
        raise CheckFailure(str(error))

    return check


def _cases(
    component: Component,
    examples: Mapping[str, Sequence[Spec]],
    dims: LayerDims | None,
    batches: Mapping[str, ExampleBatch],
) -> Iterator[Case]:
    label = f"{component.kind}/{component.name}"
    specs = list(examples.get(label, examples.get(component.name, ())))
    cls = component.spec_class()
    if not specs:
        missing = required(cls)
        if missing:
            raise MoekitError(
                f"{component.kind} '{component.name}' has no default for {', '.join(missing)}: give an example, "
                f"examples={{'{component.name}': [{cls.__name__}({missing[0]}=...)]}}"
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


def _refuse_unknown_components(
    components: Sequence[Component], examples: Mapping[str, object], batches: Mapping[str, object]
) -> None:
    names = [c.name for c in components] + [f"{c.kind}/{c.name}" for c in components]
    _refuse_unknown(examples, names, "examples for")
    _refuse_unknown(batches, names, "batches for")


def _refuse_unknown(given: Iterable[str], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"\n  did you mean '{near}'?" if near else ""
            raise MoekitError(
                f"{what} '{name}', which is not tested here{hint}\n  tested: {', '.join(sorted(set(known)))}"
            )
