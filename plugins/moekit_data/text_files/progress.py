"""A progress bar of bytes, on a terminal alone."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from moekit.screen import Screen


class Bar:
    """Counts bytes of a total; shown on the standard error stream if that is a terminal, and removed at the end.

    Args:
        text: what is done.
        total: bytes.
        shown: whether it may be shown.
    """

    def __init__(self, text: str, total: int, *, shown: bool) -> None:
        console = Screen(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task(text, total=total)

    def add(self, size: int) -> None:
        """More bytes are done."""
        self._bar.advance(self._task, size)

    def __enter__(self) -> Bar:
        """Shows it."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes it."""
        self._bar.stop()
