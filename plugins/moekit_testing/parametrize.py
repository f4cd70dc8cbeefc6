"""Turns components into pytest tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from moekit.component import Component
from moekit.contracts import LayerDims
from moekit.errors import MoekitError
from moekit.spec.fields import Spec
from moekit_testing.assertions import CheckFailure
from moekit_testing.cases import ExampleBatch, cases_of_one, refuse_unknown, refuse_unknown_components
from moekit_testing.running import BoundCheck, checks_for


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
        expected_failures: ``{"router/mine": {"check_compile": "why"}}``: checks known to fail, with the reason,
            besides those that the component declares (``Component.known_failures``).
            ``router/mine.2`` selects one example. A check that passes nevertheless fails the test.
        dims: sizes of the layer (D, E, O); default: the kit's own, unequal ones for each kind.

    Raises:
        MoekitError: examples, batches or expected failures name something that is not tested.
    """
    components, examples, batches = list(components), examples or {}, batches or {}
    refuse_unknown_components(components, examples, batches)
    known = {name: dict(checks) for name, checks in (expected_failures or {}).items()}
    bound: list[BoundCheck] = []
    failed: dict[str, MoekitError] = {}
    for component in components:
        try:
            bound += [check for case in cases_of_one(component, examples, dims, batches) for check in checks_for(case)]
        except MoekitError as error:
            failed[f"{component.kind}/{component.name}"] = error
    whole = {b.case.label: f"{b.case.kind}/{b.case.component.name}" for b in bound}
    refuse_unknown(known, [*whole.keys(), *whole.values(), *failed], "expected failures of")
    for name, reasons in known.items():
        run = [b.name for b in bound if name in (b.case.label, whole[b.case.label])]
        if run:
            refuse_unknown(reasons, run, f"an expected failure of '{name}' in")
    params = []
    for b in bound:
        reasons = known.get(whole[b.case.label], {}) | known.get(b.case.label, {})
        b = replace(b, known=reasons.get(b.name, b.known))
        marks = [pytest.mark.xfail(reason=b.known, strict=True, raises=CheckFailure)] if b.known else []
        params.append(pytest.param(b, id=f"{b.case.label}-{b.name}", marks=marks))
    params += [pytest.param(_failing(error), id=f"{label}-example") for label, error in failed.items()]
    return pytest.mark.parametrize("check", params)


def _failing(error: MoekitError) -> Callable[[], None]:
    def check() -> None:
        __tracebackhide__ = True
        raise CheckFailure(str(error))

    return check
