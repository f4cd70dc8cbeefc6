"""The metrics of objectives over plain cases: what ``cases.sum_over_cases`` logs. Torch-free."""

from __future__ import annotations

from moekit.spec.fields import MetricInfo

CASES = {
    "loss": MetricInfo("loss"),
    "blend_mse": MetricInfo("squared error of the blend", live=True),
    "accuracy": MetricInfo("accuracy", lower_is_better=False, live=True),
}
