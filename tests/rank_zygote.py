"""Forks the processes of a run that trains together: started by ``ranks.run_forked``.

It imports everything once, and forks on an order told on stdin, a JSON object a line: ``script`` and ``args``, in
``world`` processes that print to the file ``log``, with the variables that ``torchrun`` sets. It answers with one line:
the first exit code that is not 0, or 0.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forked import live

import moekit.training.run.train


def rank(order: dict[str, Any], number: int, reading: int) -> int:
    """One of the processes: waits for the port of the store, then the script, as it is run from a shell."""
    port = os.read(reading, 16).decode()
    world = str(order["world"])
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked",
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    sys.argv = [order["script"], *order["args"]]
    sys.path.insert(0, str(Path(order["script"]).parent))
    runpy.run_path(order["script"], run_name="__main__")
    return 0


def lead(order: dict[str, Any]) -> int:
    """Forks the ranks, then keeps the store at which they meet: its thread must be in no process that is forked."""
    reading, writing = os.pipe()
    ranks = []
    for number in range(order["world"]):
        if (pid := os.fork()) == 0:
            live(order["log"], partial(rank, order, number, reading))
        ranks.append(pid)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(writing, f"{store.port:<16}".encode() * order["world"])
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if code := os.waitstatus_to_exitcode(status):
            for other in ranks:  # one that waits for a rank that failed would wait for ever
                os.kill(other, signal.SIGKILL)
            return abs(code)
    return 0


if __name__ == "__main__":
    assert moekit.training.run.train.train
    torch.set_num_threads(1)
    for line in sys.stdin:
        leader = os.fork()
        if leader == 0:
            code = 1
            try:
                code = lead(json.loads(line))
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]), flush=True)
