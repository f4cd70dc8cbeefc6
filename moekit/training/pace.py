"""How fast training goes: seconds of training alone (validation and saving left out), tokens, tokens per second."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """A stopwatch that pauses for validation, and the tokens that went by.

    Args:
        clock: seconds from any start; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._since: float | None = None  # None while paused
        self.tokens = 0.0
        self._lap = (0.0, 0.0)

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._seconds + (0.0 if self._since is None else self._clock() - self._since)

    def start(self, seconds: float = 0.0, tokens: float = 0.0) -> None:
        """Starts from what an earlier run had reached."""
        self._seconds, self.tokens = seconds, tokens
        self._since = self._clock()
        self._lap = (seconds, tokens)

    def pause(self) -> None:
        """Stops the clock."""
        self._seconds, self._since = self.seconds, None

    def resume(self) -> None:
        """Lets it run on."""
        self._seconds, self._since = self.seconds, self._clock()

    def lap(self, tokens: float) -> float:
        """Tokens per second since the last lap, in which ``tokens`` went by."""
        self.tokens += tokens
        now, (seconds, before) = self.seconds, self._lap
        self._lap = (now, self.tokens)
        return (self.tokens - before) / max(now - seconds, 1e-9)
