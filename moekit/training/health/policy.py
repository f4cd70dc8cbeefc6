"""What to do about an optimizer step whose loss or gradients are not finite: stop the run, or skip the step."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_only

from moekit.errors import MoekitError

REMEDIES = "what helps most often: a lower optimizer.lr, more schedule.warmup, trainer.gradient_clip_val=1.0"
MAX_IN_A_ROW = 10  # consecutive skips that end a run: bad data seldom causes so many, a broken model always does
LOG = logging.getLogger("moekit.training")


@dataclass(frozen=True, kw_only=True)
class NonFiniteStep:
    """Why an optimizer step is not finite.

    Attributes:
        what: the values of the loss and of the gradients' norm.
        where: the module that caused it.
        lasting: whether weights or buffers are non-finite themselves, so that no later step can be finite.
        scale: the loss scale, if fp16 gradients overflowed although the loss is finite; a smaller scale follows. Else
            None.
    """

    what: str
    where: str = ""
    lasting: bool = False
    scale: float | None = None


class NonFinitePolicy:
    """Stops the run at a non-finite step, or skips and counts it.

    While the loss scale of fp16 is being found, infinite gradients are normal: both policies skip such steps.

    Args:
        policy: the recipe's ``non_finite``: ``stop`` or ``skip``.

    Attributes:
        count: optimizer steps skipped since the run began, also before it was resumed.
        in_a_row: consecutive skips, overflows of the loss scale excepted. The caller sets it to 0 after a finite step.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.count = 0
        self.in_a_row = 0

    def skip(self, step: int, cause: NonFiniteStep) -> None:
        """Counts and logs a skipped step (counted from 1), or stops the run.

        Raises:
            MoekitError: the policy is ``stop``; or weights or buffers are not finite; or too many steps in a row were.
        """
        if cause.scale is not None:
            self.count += 1
            log_on_rank_zero(
                f"step {step} skipped: gradients overflow at a loss scale of {cause.scale:g}; a smaller scale follows"
            )
            return
        report = f"step {step}: {cause.what}\n  {cause.where}\n  {REMEDIES}\n  training stopped"
        if self.policy == "stop":
            raise MoekitError(f"{report}; no weight was changed in this step; non_finite=skip skips such steps")
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        if cause.lasting:
            raise MoekitError(f"{report}: skipping steps cannot repair weights or buffers")
        if self.in_a_row >= MAX_IN_A_ROW:
            raise MoekitError(f"{report}: {MAX_IN_A_ROW} steps in a row were skipped")
        log_on_rank_zero(f"step {step} skipped ({self.count} so far): {cause.what}; {cause.where}")


@rank_zero_only
def log_on_rank_zero(line: str) -> None:
    """Logs a warning, once for all ranks; unlike ``print``, it does not break a progress bar."""
    LOG.warning(line)
