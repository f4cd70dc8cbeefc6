"""How a failed command ends: with a message for a user's mistake, with a traceback for a bug."""

from __future__ import annotations

import os
import sys
import traceback

from moekit.errors import MoekitError

MISTAKE = 2
NO_READER = 141  # 128 + SIGPIPE


def report(error: Exception) -> int:
    """Prints a user's mistake to stderr and returns the exit code; any other error is raised again.

    Mistakes are ``MoekitError`` and ``OSError`` (a missing file, a full disk). ``MOEKIT_DEBUG=1`` prints the traceback.
    """
    if isinstance(error, BrokenPipeError):
        return _close_quietly()
    if not isinstance(error, MoekitError | OSError):
        raise error
    if os.environ.get("MOEKIT_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    else:
        print(f"error: {_message(error)}", file=sys.stderr)
    return MISTAKE


def _message(error: MoekitError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return "\n  ".join([str(error), *getattr(error, "__notes__", ())])


def _close_quietly() -> int:
    """Redirects stdout after its reader (``| head``) has closed, so that Python's flush at exit prints no error."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stdout without a descriptor, as in a test, has nothing to flush
        pass
    return NO_READER
