"""Model, data and objective of a recipe must fit each other."""

from __future__ import annotations

from pages import cases
from spec_fakes import check_overrides

REPORTS = r"""
$ data=cases model.vocab=9  # conflict of model and data
data Cases yields 'cases', but model Tower takes 'tokens'; others: moekit ls data, moekit ls models
  in small.yaml

$ 'model={use: stack}' data=cases  # conflict of model and objective
objective Next takes next_token, but model Stack gives 'mixture'
  in small.yaml
"""


@cases(REPORTS)
def test_a_model_that_does_not_fit_its_data_or_objective_is_reported(given: str, expected: str) -> None:
    check_overrides(given, expected)
