"""What training refuses: a recipe without an aim, a loss that is no number, a metric that nothing logs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_only

from moekit.errors import MoekitError

HELPS = "what helps most often: a lower optimizer.lr, more schedule.warmup, trainer.gradient_clip_val=1.0"
LEAVE = "non_finite=skip leaves such steps out"
IN_A_ROW = 10  # steps left out one after the other that end a run: data does that seldom, a broken model always
LOG = logging.getLogger("moekit.training")


@dataclass(frozen=True, kw_only=True)
class NonFiniteStep:
    """Why an optimizer step is not finite.

    Attributes:
        what: the loss and the norm of its gradients, in words.
        where: the part of the model that it came from, in words.
        lasting: the weights themselves are not finite, so no later step can be.
        scale: the loss scale, where its overflow is to blame: the loss is finite, its scaled gradients are not, and a
            smaller scale follows. Else None.
    """

    what: str
    where: str = ""
    lasting: bool = False
    scale: float | None = None


class NonFinitePolicy:
    """What becomes of a step that is not finite: the end of the run, or a step left out, told and counted.

    Infinite gradients are ordinary while the loss scale of fp16 is found: such steps are left out under either policy.

    Args:
        policy: the recipe's ``non_finite``.

    Attributes:
        count: optimizer steps left out since the run began, its resumptions included.
        in_a_row: those since the last step that was taken, without overflows of a loss scale.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.count = 0
        self.in_a_row = 0

    def take(self, step: int, non_finite: NonFiniteStep | None) -> None:
        """Hears of every optimizer step.

        Args:
            step: its number, counted from 1.
            sick: what was not finite; None when all was.

        Raises:
            MoekitError: the policy is to stop; or no weight is finite any more; or too many in a row were left out.
        """
        if non_finite is None:
            self.in_a_row = 0
            return
        if non_finite.scale is not None:
            self.count += 1
            rank_zero(
                f"step {step} left out: gradients overflow at a loss scale of {non_finite.scale:g}; it is made smaller"
            )
            return
        words = f"step {step}: {non_finite.what}\n  {non_finite.where}\n  {HELPS}\n"
        if self.policy == "stop":
            raise MoekitError(f"{words}  training stopped; no weight was touched in this step; {LEAVE}")
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        if non_finite.lasting:
            raise MoekitError(f"{words}  training stopped: leaving steps out does not mend weights")
        if self.in_a_row >= IN_A_ROW:
            raise MoekitError(f"{words}  training stopped: {IN_A_ROW} steps in a row were left out, and moved nothing")
        rank_zero(f"step {step} left out ({self.count} so far): {non_finite.what}; {non_finite.where}")


@rank_zero_only
def rank_zero(line: str) -> None:
    """Says a line on stderr, once for all ranks; a progress bar is left whole."""
    LOG.warning(line)
