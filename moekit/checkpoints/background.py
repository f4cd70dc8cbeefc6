"""One piece of work at a time, done by a thread of its own while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """At most one piece of work is under way. What went wrong in it is raised when it is waited for.

    The thread is no daemon: a process that ends in good order lets it finish.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._wrong: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins; waits for what is under way first.

        Raises:
            Exception: that of the earlier piece of work.
        """
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint")
        self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._wrong = error

    def wait(self) -> None:
        """Returns when nothing is under way.

        Raises:
            Exception: that of the piece of work.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        wrong, self._wrong = self._wrong, None
        if wrong is not None:
            raise wrong
