"""The console raises an error when its reader exits."""

from __future__ import annotations

from io import StringIO

import pytest

from moekit.screen import Screen


class Gone(StringIO):
    """A stream whose reader has exited."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError("the reader has exited")


def test_a_reader_that_exits_raises_broken_pipe() -> None:
    with pytest.raises(BrokenPipeError, match="the reader has exited"):
        Screen(file=Gone()).print("a line")
