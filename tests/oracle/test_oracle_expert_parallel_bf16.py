"""Experts dealt out to several processes, under autocast: within a stated bound of the exact result, gradients too.

Counted as in ``test_oracle_bf16``, whose bound is for one process: 9 + K roundings on the way to the output and as many
again on the way to a gradient. Ranks add one each way. Tokens are rounded before they travel and not after, which is no
rounding more; but what a rank answers for a token is rounded to be sent back, and so is the gradient of the row. (What
is summed over ranks, and over the rows of a token, is summed in fp32.)

Beside the error that one process makes with all tokens that is one more rounding where there was at least one: of the
output, of the gradient of a pair's row. So the error's square is at most twice as large, and its norm at most sqrt(2)
times. Measured over six seeds, 1 to 8 choices, two and four ranks, two banks: 1.11 in the output; in gradients of
tokens 1.10, and 1.19 under ``loop``, whose sum over a row's choices is in bf16; 1.00 in those of gates and weights,
which see the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_forked

SCRIPT = Path(__file__).with_name("expert_parallel_bf16_run.py")


def test_two_ranks_under_autocast() -> None:
    run_forked(SCRIPT, 2, "quick")


@pytest.mark.slow
def test_four_ranks_under_autocast() -> None:
    run_forked(SCRIPT, 4, "whole")
