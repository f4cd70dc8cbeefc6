"""Turns components into pytest tests: which checks apply, the tests' names, and the text of failures."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from moekit.component import Component
from moekit.contracts import LayerDims
from moekit.errors import MoekitError, nearest
from moekit.registry import current
from moekit.spec.fields import Spec, required
from moekit.spec.kinds import ExpertSpec
from moekit.testing.assertions import CheckFailure
from moekit.testing.case import DIMS, Case, Check
from moekit.testing.checks import common


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
    module = current().kinds[case.kind].checks
    files = [common, *([importlib.import_module(module)] if module else [])]
    return [BoundCheck(check, case) for file in files for check in file.checks(case)]


def cases_of(
    components: Iterable[Component],
    examples: Mapping[str, Sequence[Spec]],
    dims: LayerDims | None = None,
) -> Iterator[Case]:
    """One case for each example of each component. Without an example, options have their defaults.

    Raises:
        MoekitError: a component without an example has options without a default; an example's component is unknown.
    """
    components = list(components)
    names = [c.name for c in components] + [f"{c.kind}/{c.name}" for c in components]
    _refuse_unknown(examples, names, "examples for")
    for component in components:
        specs = list(examples.get(f"{component.kind}/{component.name}", examples.get(component.name, ())))
        if not specs:
            missing = required(component.spec_class())
            if missing:
                name = component.spec_class().__name__
                raise MoekitError(
                    f"{component.kind} '{component.name}' has no default for {', '.join(missing)}: give an example, "
                    f"examples={{'{component.name}': [{name}({missing[0]}=...)]}}"
                )
            specs = [component.spec_class()()]
        for number, spec in enumerate(specs, 1):
            label = f"{component.kind}/{component.name}" + (f".{number}" if len(specs) > 1 else "")
            yield _case(component, spec, dims, label)


def parametrize_checks(
    components: Iterable[Component],
    *,
    examples: Mapping[str, Sequence[Spec]] | None = None,
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
    dims: LayerDims | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that parametrizes a test over all checks of all components, as its argument ``check``.

    Args:
        components: the components to test.
        examples: specs to build a component with, by its name (or ``kind/name``), for options without a default or to
            test several settings. Tests are then numbered: ``router/mine.1``, ``router/mine.2``.
        expected_failures: ``{"router/mine": {"check_compile": "why"}}``: checks known to fail, with the reason.
            ``router/mine.2`` selects one example. A check that passes nevertheless fails the test.
        dims: sizes of the layer; default: the kit's own.

    Raises:
        MoekitError: an example is missing, or examples or expected failures name something that is not tested.
    """
    known = {name: dict(checks) for name, checks in (expected_failures or {}).items()}
    bound = [check for case in cases_of(components, examples or {}, dims) for check in checks_for(case)]
    whole = {b.case.label: f"{b.case.kind}/{b.case.component.name}" for b in bound}
    _refuse_unknown(known, [*whole.keys(), *whole.values()], "expected failures of")
    for name, reasons in known.items():
        run = [b.name for b in bound if name in (b.case.label, whole[b.case.label])]
        _refuse_unknown(reasons, run, f"an expected failure of '{name}' in")
    params = []
    for b in bound:
        reasons = known.get(whole[b.case.label], {}) | known.get(b.case.label, {})
        marks = (
            [pytest.mark.xfail(reason=reasons[b.name], strict=True, raises=CheckFailure)] if b.name in reasons else []
        )
        params.append(pytest.param(b, id=f"{b.case.label}-{b.name}", marks=marks))
    return pytest.mark.parametrize("check", params)


def _case(component: Component, spec: Spec, dims: LayerDims | None, label: str) -> Case:
    dims = dims or DIMS.get(component.kind, DIMS["router"])
    if isinstance(spec, ExpertSpec):
        spec = replace(spec, count=dims.num_experts)
    return Case(component=component, spec=spec, dims=dims, label=label)


def _refuse_unknown(given: Iterable[str], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"\n  did you mean '{near}'?" if near else ""
            raise MoekitError(
                f"{what} '{name}', which is not tested here{hint}\n  tested: {', '.join(sorted(set(known)))}"
            )
