"""Problems of a whole spec: conflicts, the order of a report, and what a plugin declared wrongly."""

from __future__ import annotations

from pages import cases
from spec_fakes import check_overrides

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
