"""Checks of a case: which apply, running one, and the text of its failure."""

from __future__ import annotations

import inspect
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moekit.component import Component
from moekit.errors import MoekitError
from moekit.spec.fields import Spec
from moekit_testing.assertions import CheckFailure, require
from moekit_testing.case import Case, Check, CheckSkipped, Omitted, checks_module
from moekit_testing.cases import cases_of_one, refuse_unknown
from moekit_testing.checks import common
from moekit_testing.fixtures.network import no_network

Status = Literal["passed", "failed", "known failure", "skipped"]


@dataclass(frozen=True)
class BoundCheck:
    """One check of one case. Call it to run the check.

    ``known`` is why it is known to fail, and ``omitted`` why it does not apply; both empty as a rule.
    """

    check: Check
    case: Case
    known: str = ""
    omitted: str = ""

    @property
    def name(self) -> str:
        """The name of the check's function: ``check_padding``."""
        return self.check.__name__

    def __call__(self) -> None:
        """Runs the check, without a network.

        Raises:
            CheckFailure: it failed, raised another exception, or wanted to connect to another machine.
            CheckSkipped: it cannot run here.
        """
        __tracebackhide__ = True
        try:
            with no_network() as wanted:
                self.check(self.case)
            hosts = ", ".join(dict.fromkeys(wanted))
            require(not wanted, found=f"it wants to connect to {hosts}", expected="an example that stays offline")
        except CheckSkipped:
            raise
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


def all_checks(case: Case) -> list[BoundCheck]:
    """Every check of the case's kind, in order, those that its claims do not call for too.

    Raises:
        MoekitError: the component declares a known failure of a check that does not exist.
    """
    known = case.component.known_failures
    own = checks_module(case.kind)
    found: list[BoundCheck] = []
    for file in (common, own) if own else (common,):
        for each in file.checks(case):
            check, omitted = (each.check, each.reason) if isinstance(each, Omitted) else (each, "")
            found.append(BoundCheck(check, case, known.get(check.__name__, ""), omitted))
    refuse_unknown(known, [b.name for b in found], f"a known failure of {case.label} in")
    return found


def checks_for(case: Case) -> list[BoundCheck]:
    """All checks that apply to the case's kind and claims, in order.

    Raises:
        MoekitError: the component declares a known failure of a check that does not exist.
    """
    return [b for b in all_checks(case) if not b.omitted]


def names_of_checks(kind: str) -> list[str]:
    """The names of every check that a component of this kind may get."""
    own = checks_module(kind)
    return [name for file in (common, own) if file for name in vars(file) if name.startswith("check_")]


@dataclass(frozen=True)
class Result:
    """What became of one check.

    Attributes:
        case: label of the case, as ``router/mine``.
        options: of the case.
        check: name of the check.
        status: a known failure is one that its author declared and that did fail.
        reason: why it failed or was skipped, in a line or a few.
        seconds: how long it took.
        message: of a failure, also what was demanded.
    """

    case: str
    options: str
    check: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    message: str = ""


def run(bound: BoundCheck) -> Result:
    """Runs a check, and returns what became of it.

    A check that passes although it is known to fail has failed: its entry is out of date.
    """

    def result(status: Status, reason: str = "", message: str = "") -> Result:
        seconds = time.perf_counter() - start
        return Result(bound.case.label, str(bound.case.spec), bound.name, status, reason, seconds, message)

    start = time.perf_counter()
    if bound.omitted:
        return result("skipped", bound.omitted)
    try:
        bound()
    except CheckSkipped as skipped:
        return result("skipped", str(skipped))
    except CheckFailure as failure:
        if bound.known:
            return result("known failure", bound.known)
        text = str(failure)
        reason = text[text.index("  found     ") : text.index("\n  options   ")]
        trace = "".join(traceback.format_exception(failure.__cause__)) if failure.__cause__ else ""
        return result("failed", textwrap.dedent(reason), trace + text)
    if bound.known:
        return result("failed", f"passes, but is declared to fail ({bound.known}): delete its entry")
    return result("passed")


def results(
    component: Component,
    *,
    examples: Mapping[str, Sequence[Spec]],
    only: Iterable[str] = (),
    watch: Callable[[str], None] = lambda text: None,
) -> Iterator[Result]:
    """The result of every check of a component; one failure if it cannot be tested without an example.

    Args:
        component: what is tested.
        examples: as for ``parametrize_checks``.
        only: names of checks; none for all.
        watch: called with what runs next.
    """
    only = set(only)
    try:
        bound = [b for case in cases_of_one(component, examples, None, {}) for b in all_checks(case)]
    except MoekitError as error:
        yield Result(f"{component.kind}/{component.name}", "", "example", "failed", str(error), message=str(error))
        return
    for each in bound:
        if not only or each.name in only:
            watch(f"{each.case.label}  {each.name}")
            yield run(each)
