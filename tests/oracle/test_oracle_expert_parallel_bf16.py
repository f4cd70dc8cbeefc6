"""Experts sharded over ranks, under autocast: within a stated bound of the exact result, gradients too.

Derived as in ``test_oracle_bf16``, whose bound is for one process: 9 + K roundings for the output, and twice as many
for a gradient. Expert parallelism adds one to each. Tokens are rounded before the all-to-all instead of after it, which
adds none; but a rank rounds its result for a token before it sends it back, and likewise the gradient of the row. (Sums
over ranks, and over the rows of a token, are in fp32.)

Compared with one process for all tokens, this is one more rounding where there is at least one already: of the output,
and of the gradient of a pair's row. So the error's square is at most twice as large, and its norm at most sqrt(2)
times. Measured over six seeds, 1 to 8 choices, two and four ranks, two banks: 1.11 in the output; in gradients of
tokens 1.10, and 1.19 under ``loop``, whose sum over a row's choices is in bf16; 1.00 in gradients of gates and weights,
which are computed from the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_forked

SCRIPT = Path(__file__).with_name("expert_parallel_bf16_run.py")


def test_two_ranks_under_autocast_are_within_the_bound() -> None:
    run_forked(SCRIPT, 2, "quick")


@pytest.mark.slow
def test_four_ranks_under_autocast_are_within_the_bound() -> None:
    run_forked(SCRIPT, 4, "whole")
