"""Problems of a whole spec: conflicts, the order of a report, and what a plugin declared wrongly."""

from __future__ import annotations

import pytest
from pages import cases, whole
from spec_fakes import check_overrides

from moekit.errors import PluginError
from moekit.spec import validate

REPORTS = r"""
$ model.moe.router.top_k=1 model.moe.router.renormalize=true model.moe.router.score=sigmoid  # conflict of options
2 problems

top_k=1 with renormalize=true has no gradient
  at model.moe.router  in command line

top_k=1 with score=sigmoid is not wanted here
  at model.moe.router  in command line
"""


@cases(REPORTS)
def test_every_conflict_between_options_is_reported(given: str, expected: str) -> None:
    check_overrides(given, expected)


def test_an_option_of_a_type_that_no_spec_can_hold_names_its_component() -> None:
    message = (
        "model 'odd', option 'number': an option cannot be of type <class 'complex'>: "
        "int, float, bool, str, Literal, list and dict are read"
    )
    with pytest.raises(PluginError, match=whole(message)):
        validate({"model": {"use": "odd", "number": 3}})
