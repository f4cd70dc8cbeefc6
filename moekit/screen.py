"""The console that training, benchmarks and plans write to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


class Screen(Console):
    """A console that raises ``BrokenPipeError`` when its reader exits (``| head``), so that the exit code is not 0.

    rich raises ``SystemExit`` instead, which Lightning treats as a request to stop.
    """

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error.

        Raises:
            BrokenPipeError: the same error.
        """
        raise


@contextmanager
def status_line(console: Console) -> Iterator[Callable[[str], None]]:
    """Yields a function that replaces the text of a status line on a terminal, and does nothing elsewhere."""
    if not console.is_terminal or not sys.stderr.isatty():
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)
