"""Rank detection, and broadcasting from rank 0 before the process group exists.

Processes are started by Lightning, which runs the same command again for every further device, with its environment; by
``torchrun``; or by SLURM. The last two start all processes alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from moekit.distributed import is_distributed
from moekit.errors import MoekitError

RANK_ZERO_TIMEOUT = timedelta(minutes=10)
"""Timeout for broadcasts from rank 0 before the process group exists."""


def is_rank_zero() -> bool:
    """Whether this is rank 0 of its run: the one that prints and writes."""
    return dist.get_rank() == 0 if is_distributed() else int(getattr(rank_zero_only, "rank", 0)) == 0


def decide_on_rank_zero(what: str, choose: Callable[[], str], timeout: timedelta = RANK_ZERO_TIMEOUT) -> str:
    """Runs ``choose`` on rank 0 and returns its result on every rank. If it raises, the other ranks raise too.

    Args:
        what: a name for the choice, in letters and underscores. Without a process group it is made once per run.
        choose: called on rank 0 only. If Lightning has yet to start the other ranks, an error starts none.
        timeout: how long other ranks wait while there is no process group.

    Raises:
        MoekitError: on rank 0, what ``choose`` raised; on other ranks, its first line, or that rank 0 did not answer,
            or that something unknown started this process: then an environment variable must hold the choice.
    """
    if is_distributed():
        return _choose_and_send(choose, _broadcast) if is_rank_zero() else _received(_broadcast(""))
    variable = f"MOEKIT_{what.upper()}"
    cluster = _cluster()
    if cluster is not None and cluster.world_size() > 1:
        return _from_store(cluster, variable, choose, timeout)
    if is_rank_zero():
        os.environ[variable] = choose()  # inherited by the processes that Lightning starts
    if variable not in os.environ:
        raise MoekitError(
            f"this process is not rank 0 of its run, and does not know what rank 0 chose: {variable} is not set\n"
            f"  start all processes with torchrun, or set {variable} to the same value for each"
        )
    return os.environ[variable]


def check_same_run(own: str) -> None:
    """Rejects a rank that runs something else than rank 0: they would train different models, or wait in vain.

    Args:
        own: what this process runs: the version of moekit and the recipe.

    Raises:
        MoekitError: naming the rank, and what both run.
    """
    first = decide_on_rank_zero("run", lambda: own)
    if first != own:
        rank = f"rank {getattr(rank_zero_only, 'rank', 0)}"
        raise MoekitError(
            f"{rank} of this run differs from rank 0\n  rank 0 has {first}\n  {rank} has {own}\n"
            "  expected one version of moekit, and the same recipe and options, on every machine"
        )


def _cluster() -> ClusterEnvironment | None:
    """The launcher that started all processes alike, detected in Lightning's own order; None if there is none."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            return kind()
    return None


def _choose_and_send(choose: Callable[[], str], send: Callable[[str], object]) -> str:
    """Rank 0's side: sends the choice, or the error that ends rank 0."""
    try:
        chosen = choose()
    except MoekitError as error:
        with suppress(MoekitError):  # that a rank did not answer matters less than this error
            send(json.dumps({"error": str(error).partition("\n")[0]}))
        raise
    send(json.dumps({"chosen": chosen}))
    return chosen


def _received(message: str) -> str:
    """The other ranks' side: the choice, or rank 0's error."""
    answer: dict[str, str] = json.loads(message)
    if "error" in answer:
        raise MoekitError(f"rank 0 of this run has ended: {answer['error']}")
    return answer["chosen"]


def _broadcast(message: str) -> str:
    messages = [message]
    dist.broadcast_object_list(messages)
    return messages[0]


def _from_store(cluster: ClusterEnvironment, key: str, choose: Callable[[], str], timeout: timedelta) -> str:
    rank, world = cluster.global_rank(), cluster.world_size()
    key = f"{key}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def call() -> str:  # the same name may be decided again
        return f"{key}/{store.add(f'{key}/calls/{rank}', 1)}"

    def send(message: str) -> None:
        sent = call()
        store.set(sent, message)
        for other in range(1, world):  # the store may end with this process
            try:
                store.wait([f"{sent}/{other}"], RANK_ZERO_TIMEOUT)
            except dist.DistError as error:
                raise _no_answer(other, RANK_ZERO_TIMEOUT) from error

    if rank == 0:
        store = _open_store(cluster)
        return _choose_and_send(choose, send)
    try:
        store = _open_store(cluster)
        received = call()
        store.wait([received], timeout)
        message: str = store.get(received).decode()
        store.set(f"{received}/{rank}", "received")
    except dist.DistError as error:
        raise _no_answer(0, timeout) from error
    return _received(message)


def _open_store(cluster: ClusterEnvironment) -> dist.TCPStore:  # type: ignore[name-defined]
    address, port = cluster.main_address, cluster.main_port
    torchrun_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # its own store, at that port
    serves = cluster.global_rank() == 0 and not torchrun_serves
    try:
        return _store(address, port, serves)
    except dist.DistNetworkError as error:
        if not serves:
            raise
        raise MoekitError(
            f"rank 0 of this run cannot listen at {address}, port {port}: {str(error).partition(chr(10))[0]}\n"
            "  if another program uses the port, set MASTER_PORT to a free one, the same on every rank"
        ) from error


@cache
def _store(address: str, port: int, serves: bool) -> dist.TCPStore:  # type: ignore[name-defined]
    """This process's connection to rank 0's store. It stays open until the process ends: if rank 0 closed its store
    after each choice, another rank could connect for the next choice to the store that closes. The process group uses
    the same store.
    """
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=serves, timeout=RANK_ZERO_TIMEOUT, wait_for_workers=False, multi_tenant=True
    )


def _no_answer(rank: int, timeout: timedelta) -> MoekitError:
    return MoekitError(f"rank {rank} of this run has crashed, or did not answer within {timeout}")
