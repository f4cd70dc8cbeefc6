"""How a command ends when it fails: a user's mistake is a message, a bug is a traceback."""

from __future__ import annotations

import os
import sys
import traceback

from moekit.errors import MoekitError

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
NO_READER = 141  # 128 + SIGPIPE


def report(error: Exception) -> int:
    """Tells a user's mistake on stderr and returns the exit code; raises anything else again.

    Mistakes are ``MoekitError`` and ``OSError`` (a missing file, a full disk). ``MOEKIT_DEBUG=1`` adds the traceback.
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


def interrupted() -> int:
    """Ends the line that Ctrl-C was typed on."""
    print("\ninterrupted", file=sys.stderr)
    return INTERRUPTED


def _message(error: MoekitError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error)


def _close_quietly() -> int:
    """The reader of stdout (``| head``) has gone: point stdout elsewhere, so that Python's own flush is quiet too."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stdout without a descriptor (in a test): nothing is left to flush
        pass
    return NO_READER
