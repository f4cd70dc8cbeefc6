"""The screen that training, benchmarks and plans write to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def status_line(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that changes on a terminal, to be told what is at work; nothing elsewhere."""
    if not console.is_terminal or not sys.stderr.isatty():
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)
