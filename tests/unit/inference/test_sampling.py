"""The limits of sampling, in the words of Python and of the command line."""

from __future__ import annotations

from typing import Any

import pytest

from moekit.errors import MoekitError
from moekit.inference.sampling import check_sampling

GOOD: dict[str, Any] = {"prompt": "a", "tokens": 0, "temperature": 0.0, "top_p": 1.0, "seed": 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": -1}, "expected --tokens >= 0, a finite --temperature"),
        ({"temperature": float("nan")}, "expected --tokens >= 0"),
        ({"top_p": 0.0}, r"0 < --top-p <= 1"),
        ({"seed": 2**63}, r"--seed 9223372036854775808 is out of range"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "\udcff"}, r"the prompt '\\udcff' has bytes that are not UTF-8"),
    ],
)
def test_a_value_out_of_range_is_rejected(given: dict[str, Any], message: str) -> None:
    check_sampling(**GOOD)
    with pytest.raises(MoekitError, match=message):
        check_sampling(**{**GOOD, **given}, sign="--")
