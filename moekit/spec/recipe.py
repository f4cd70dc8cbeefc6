"""Recipe: the root of every YAML file; and the table of all kinds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from moekit.spec.fields import Spec, group, option, slot
from moekit.spec.kinds import (
    AttentionSpec,
    BalancerSpec,
    DataSpec,
    DispatcherSpec,
    ExpertSpec,
    ModelSpec,
    ObjectiveSpec,
    OptimizerSpec,
    RouterSpec,
    ScheduleSpec,
)


@dataclass(frozen=True, kw_only=True)
class Paper(Spec):
    """Where a recipe comes from."""

    title: str = option("", "title of the paper")
    authors: str = option("", "first authors")
    year: int = option(0, "year of first publication")
    arxiv: str = option("", "arXiv number")
    where: str = option("", "venue, or DOI")
    claim: str = option("", "what the paper reports, in a sentence")
    total: str = option("", "published number of parameters")
    active: str = option("", "published number of active parameters per token")
    reading: Literal["", "both", "without_input", "without_either"] = option(
        "", "which embeddings the published active count includes"
    )
    total_reading: Literal["both", "without_either"] = option(
        "both", "which embeddings the published total includes; without_either: neither these nor the head"
    )


@dataclass(frozen=True, kw_only=True)
class Stop(Spec):
    """Ends training early, when a logged metric falls to a bound."""

    metric: str = option(help="name of a logged metric")
    below: float = option(help="stop when the metric is at most this")


@dataclass(frozen=True, kw_only=True)
class Compare(Spec):
    """Trains, after the model, a dense model of the same active parameters on the same tokens."""

    lr: float | None = option(None, "learning rate of the dense model; the recipe's own when left out", gt=0)


@dataclass(frozen=True, kw_only=True)
class Start(Spec):
    """Starts from trained weights, with a fresh optimizer at step 0: fine-tuning. The weights must fit exactly."""

    run: str = option(help="whose: a run folder, a checkpoint, or a run's name, meaning its latest below runs/")
    update: Literal["all", "experts", "others"] = option(
        "all", "which parameters move: all; routed experts and their routers; or all others (ST-MoE)"
    )

    def check(self) -> Iterable[str]:
        """Some run is named."""
        if not self.run.strip():
            yield "run is empty; give a run folder, a checkpoint or a run's name"


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Spec):
    """What is kept of a run while it trains. One is saved at every validation (``trainer.val_check_interval``)."""

    keep: int = option(2, "how many of the newest stay, besides the best", ge=1)
    asynchronous: bool = option(False, "write while training goes on; takes a copy of what is saved in host memory")


@dataclass(frozen=True, kw_only=True)
class Recipe(Spec):
    """A whole training run, or a whole model: the root of every YAML file."""

    kind: ClassVar[str] = "recipe"
    schema: int = option(1, "version of the spec format", ge=1, le=1)
    requires: dict[str, str] = option({}, "plugins this recipe needs, by entry-point name: {acme: '>=1.2'}")
    name: str = option("", "name of the run's folder; the recipe's own name when left out")
    summary: str = option("", "one line")
    paper: Paper | None = group("where it comes from", default=None)
    seed: int = option(0, "seed of weights, sampling and noise", ge=0)
    model: ModelSpec = slot("model", "what is trained")
    objective: ObjectiveSpec | None = slot("objective", "what it is trained for", optional=True)
    data: DataSpec | None = slot("data", "what it is trained on", optional=True)
    optimizer: OptimizerSpec | None = slot("optimizer", "how weights move", optional=True)
    schedule: ScheduleSpec | None = slot("schedule", "how the learning rate moves", optional=True)
    start: Start | None = group("trained weights to start from; null for fresh ones", default=None)
    stop: Stop | None = group("early stopping", default=None)
    compare: Compare | None = group("the dense model to compare with", default=None)
    non_finite: Literal["stop", "skip"] = option(
        "stop", "when a loss or gradient is NaN or infinite: end the run, or leave that optimizer step out"
    )
    compile: bool = option(False, "compile the model's blocks with torch.compile: pays on GPUs, and in long runs")
    checkpoints: Checkpoints = group("what is kept of a run while it trains", default=Checkpoints())
    trainer: dict[str, Any] = option({}, "options of lightning.Trainer, passed through")

    def check(self) -> Iterable[str]:
        """Data yields what the model takes, within its vocabulary; the objective takes what the model gives.

        A dense model to compare with has no trained weights to start from.
        """
        if self.start is not None and self.compare is not None:
            yield "start and compare are both given, but the dense model has no weights to start from; compare: null"
        if self.data is not None and self.data.yields != self.model.takes:
            yield (
                f"data {type(self.data).__name__} yields '{self.data.yields}', "
                f"but model {type(self.model).__name__} takes '{self.model.takes}'; "
                "others: moekit ls data, moekit ls models"
            )
        given, known = getattr(self.data, "vocab", None), getattr(self.model, "vocab", None)
        if isinstance(given, int) and isinstance(known, int) and given > known:
            yield (
                f"data {type(self.data).__name__} yields tokens of a vocab of {given}, "
                f"but model {type(self.model).__name__} has one of {known}; vocab: ${{data.vocab}} keeps them equal"
            )
        if self.objective is not None and self.model.offers() not in self.objective.takes:
            yield (
                f"objective {type(self.objective).__name__} takes {', '.join(sorted(self.objective.takes))}, "
                f"but model {type(self.model).__name__} gives '{self.model.offers()}'"
            )


KINDS: dict[str, type[Spec]] = {
    base.kind: base
    for base in (
        RouterSpec,
        ExpertSpec,
        DispatcherSpec,
        BalancerSpec,
        AttentionSpec,
        ModelSpec,
        ObjectiveSpec,
        DataSpec,
        OptimizerSpec,
        ScheduleSpec,
        Recipe,
    )
}
"""Base class of each kind's specs, by the kind's name (singular; hooks and ``moekit ls`` use ``plural``)."""


def plural(kind: str) -> str:
    """The word for many of a kind, as in hook names and ``moekit ls``: ``routers``, ``data``, ``attention``."""
    return kind if kind in ("data", "attention") else f"{kind}s"
