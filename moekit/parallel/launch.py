"""Which process of a run this is, and words of the first one that all must know before there is a process group.

Processes come from Lightning, which starts the command again for every further device and hands its environment on;
from ``torchrun``; or from SLURM. The latter two start all of them alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from moekit.distributed import is_distributed
from moekit.errors import MoekitError

RANK_ZERO_TIMEOUT = timedelta(minutes=10)
"""How long the others wait for the first process to say its word."""


def is_rank_zero() -> bool:
    """Whether this is rank 0 of its run: the one that speaks and writes."""
    return dist.get_rank() == 0 if is_distributed() else int(getattr(rank_zero_only, "rank", 0)) == 0


def decide_on_rank_zero(what: str, choose: Callable[[], str], timeout: timedelta = RANK_ZERO_TIMEOUT) -> str:
    """What the first process chooses, in every process of the run; or why it does not, so that none waits for it.

    Args:
        what: names the choice; letters and underscores. The same choice is made once in a run, unless there is a
            process group, which is then asked.
        choose: called in the first process alone. Where Lightning is yet to start the others, an error starts none.
        patience: how long the others wait before there is a process group.

    Raises:
        MoekitError: whatever ``choose`` raised, in the first process as it is, in the others by its first line; they
            heard nothing; or this is one that was started in a way not known here: the environment can tell it.
    """
    if is_distributed():
        return _chosen_and_told(choose, _broadcast) if is_rank_zero() else _heard(_broadcast(""))
    variable = f"MOEKIT_{what.upper()}"
    cluster = _cluster()
    if cluster is not None and cluster.world_size() > 1:
        return _from_store(cluster, variable, choose, timeout)
    if is_rank_zero():
        os.environ[variable] = choose()  # Lightning hands it on to the processes that it starts
    if variable not in os.environ:
        raise MoekitError(
            f"this is a further process of a run, and it does not know the run's {what}\n"
            f"  start all with torchrun, or set {variable} alike for each of them"
        )
    return os.environ[variable]


def _cluster() -> ClusterEnvironment | None:
    """What started all processes alike, in Lightning's own order."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            return kind()
    return None


def _chosen_and_told(choose: Callable[[], str], tell: Callable[[str], object]) -> str:
    """What the first process chooses, or the error that it ends with; the others are told which."""
    try:
        chosen = choose()
    except MoekitError as error:
        tell(json.dumps({"refused": str(error).partition("\n")[0]}))
        raise
    tell(json.dumps({"chosen": chosen}))
    return chosen


def _heard(told: str) -> str:
    """What the others make of it."""
    answer: dict[str, str] = json.loads(told)
    if "refused" in answer:
        raise MoekitError(f"the first process of this run has ended: {answer['refused']}")
    return answer["chosen"]


def _broadcast(word: str) -> str:
    words = [word]
    dist.broadcast_object_list(words)
    return words[0]


def _from_store(cluster: ClusterEnvironment, key: str, choose: Callable[[], str], timeout: timedelta) -> str:
    rank, world = cluster.global_rank(), cluster.world_size()
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun has a store of its own at that port
    serves = rank == 0 and not agents
    store = dist.TCPStore(cluster.main_address, cluster.main_port, world, serves, RANK_ZERO_TIMEOUT, multi_tenant=True)  # type: ignore[attr-defined]
    key = f"{key}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def tell(word: str) -> None:
        store.set(key, word)
        store.wait(
            [f"{key}/{other}" for other in range(1, world)], RANK_ZERO_TIMEOUT
        )  # the store may end with this process's

    if rank == 0:
        return _chosen_and_told(choose, tell)
    try:
        store.wait([key], timeout)
        told: str = store.get(key).decode()
    except dist.DistError as error:
        raise MoekitError(f"the first process of this run is gone, or said nothing for {timeout}") from error
    store.set(f"{key}/{rank}", "heard")
    return _heard(told)
