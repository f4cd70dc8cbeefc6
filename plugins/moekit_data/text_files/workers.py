"""Processes that work on segments. Each is a new Python, so that no script has to guard its main part.

``multiprocessing`` would import the user's script again in each process, or copy a process that has threads.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

from moekit.errors import DataError
from moekit_data.text_files.jobs import Job, Use

if TYPE_CHECKING:  # a process that only lists texts starts without torch
    from moekit.contracts import Tokenizer


class Workers:
    """Runs jobs, in order of their results; with one process, in this one.

    Args:
        processes: how many.
    """

    def __init__(self, processes: int) -> None:
        self._tokenizer: Tokenizer | None = None
        self._count = processes
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._ready: set[subprocess.Popen[bytes]] = set()  # processes that have the tokenizer

    def __enter__(self) -> Workers:
        """Starts the processes."""
        if self._count > 1:
            path = os.pathsep.join(each for each in sys.path if each)
            environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            command = [sys.executable, "-m", "moekit_data.text_files.workers"]
            self._all = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                for _ in range(self._count)
            ]
            for process in self._all:
                self._idle.put(process)
        return self

    def use(self, tokenizer: Tokenizer) -> None:
        """Takes a tokenizer for later jobs. Each process builds its own, of the same spec and state."""
        self._tokenizer = tokenizer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the processes, and waits until they have ended."""
        for process in self._all:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                try:
                    cast("IO[bytes]", pipe).close()
                except OSError:
                    pass  # the process ended first, and did not read all

    def run(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """The result of each job, in order; a few more are under way than are requested.

        Raises:
            DataError: a job raised it, or a process ended.
        """
        if not self._all:
            yield from (job.run(self._tokenizer) for job in jobs)
            return
        with ThreadPoolExecutor(self._count) as threads:
            waiting: deque[Future[Any]] = deque()
            try:
                for job in jobs:
                    waiting.append(threads.submit(self._send, job))
                    if len(waiting) > 2 * self._count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _send(self, job: Job) -> Any:
        process = self._idle.get()
        try:
            request = cast("IO[bytes]", process.stdin)
            if self._tokenizer is not None and process not in self._ready:
                kind, spec = type(self._tokenizer), getattr(self._tokenizer, "spec", None)
                pickle.dump(Use(kind, spec, self._tokenizer.state()), request)
                self._ready.add(process)
            pickle.dump(job, request)
            request.flush()
            result, error = pickle.load(cast("IO[bytes]", process.stdout))
        except (OSError, EOFError) as broken:
            code = process.wait()
            raise DataError(
                f"a process that tokenises text ended with code {code}, perhaps for lack of memory\n"
                "  expected it to run to the end; data.processes=1 tokenises in this process"
            ) from broken
        finally:
            self._idle.put(process)
        if error is not None:
            raise error
        return result


def main() -> None:
    """Runs jobs from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends this one
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be among the results
    tokenizer: Tokenizer | None = None
    while True:
        try:
            job: Job | Use = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if isinstance(job, Use):
            tokenizer = job.kind(job.spec)
            assert tokenizer is not None
            tokenizer.load_state(job.state)
            continue
        try:
            answer: tuple[Any, Exception | None] = job.run(tokenizer), None
        except Exception as error:
            answer = None, error
        pickle.dump(answer, results)
        results.flush()


if __name__ == "__main__":
    main()
