"""What a process that was forked does from its first moment to its last; used by both zygotes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch


def live(log: str, work: Callable[[], int]) -> NoReturn:
    """Prints to the end of ``log``, works, and ends the process, which never returns to what its parent was doing.

    Args:
        log: a file; made where there is none.
        work: answers with the exit code. An exception is a traceback in the log and the code 1.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)  # renews the thread pool in this thread: two that autograd starts would race to do it
    code = 1
    try:
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
