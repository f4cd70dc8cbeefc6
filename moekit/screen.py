"""The screen that training and benchmarks write to."""

from __future__ import annotations

from rich.console import Console


class Screen(Console):
    """A console whose reader may leave (``| head``): that is an error of the command, told by its exit code.

    rich's own would raise ``SystemExit``, which Lightning takes for a wish to stop.
    """

    def on_broken_pipe(self) -> None:
        """Called while the error is being handled.

        Raises:
            BrokenPipeError: the same.
        """
        raise
