"""A reader that has gone is an error, not a wish to stop."""

from __future__ import annotations

from io import StringIO

import pytest

from moekit.screen import Screen


class Gone(StringIO):
    """What nobody reads any more."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError


def test_a_reader_that_exits_raises_broken_pipe() -> None:
    with pytest.raises(BrokenPipeError):
        Screen(file=Gone()).print("a line")
