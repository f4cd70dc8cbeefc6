"""``Recipe``, the root of every YAML file, and its groups of options."""

from collections.abc import Iterable, Mapping
from typing import Literal

from moekit.errors import nearest
from moekit.spec import kinds
from moekit.spec.fields import Spec, group, metrics_of, option, slot, slots
from moekit.spec.trainer import TrainerSpec


class Paper(Spec):
    """The paper that a recipe follows."""

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


class Stop(Spec):
    """Early stopping: ends training when a logged metric falls to a bound."""

    metric: str = option(help="name of a logged metric")
    below: float = option(help="stop when the metric is at most this")


class Compare(Spec):
    """Also trains the dense baseline: a model of the same active parameters, on the same tokens."""

    lr: float | None = option(None, "learning rate of the dense model (default: the recipe's own)", gt=0)


class Start(Spec):
    """Fine-tuning: starts from trained weights, with a new optimizer, at step 0. The weights must fit exactly.

    A balancer that the run lacks begins with its initial state.
    """

    run: str = option(help="a run folder, a checkpoint, or a run's name (its latest run below runs/)")
    update: Literal["all", "experts", "others"] = option(
        "all", "which parameters are trained: all; routed experts and their routers; or all others (ST-MoE)"
    )

    fresh: list[str] = option(
        [], "parts that begin with initial weights, or are dropped, by a word of their tensors' names, such as router"
    )

    def check(self) -> Iterable[str]:
        """A run must be named."""
        if not self.run.strip():
            yield "run is empty; give a run folder, a checkpoint or a run's name"


class BatchRamp(Spec):
    """A batch that grows at the start of training, step by step, from a share of the data's batch to all of it."""

    first: float = option(help="share of the batch in the first step", gt=0, le=1)
    steps: int = option(help="steps until the whole batch", ge=1)

    def share(self, step: int) -> float:
        """The share of the batch in a step, counted from 0: a straight line from ``first`` to 1, then 1."""
        return min(self.first + (1 - self.first) * step / self.steps, 1.0)


class Checkpoints(Spec):
    """Which checkpoints are kept. One is saved at every validation (``trainer.val_check_interval``)."""

    keep: int = option(2, "how many of the newest are kept, in addition to the best", ge=1)
    asynchronous: bool = option(False, "write in the background, while training continues; needs a copy in host memory")


class Recipe(Spec):
    """A whole training run, or a whole model: the root of every YAML file."""

    schema: int = option(1, "version of the spec format", ge=1, le=1)
    requires: dict[str, str] = option({}, "plugins this recipe needs, by entry-point name: {acme: '>=1.2'}")
    name: str = option("", "name of the run's folder (default: the recipe's name)")
    summary: str = option("", "one line")
    paper: Paper | None = group("the paper that it follows", default=None)
    seed: int = option(0, "seed of weights, sampling and noise", ge=0)
    model: kinds.ModelSpec = slot("model", "the model")
    objective: kinds.ObjectiveSpec | None = slot("objective", "the training objective", optional=True)
    data: kinds.DataSpec | None = slot("data", "the training and validation data", optional=True)
    evaluators: Mapping[str, kinds.EvaluatorSpec] = slots("evaluator", "scores and pictures of the trained model")
    optimizer: kinds.OptimizerSpec | None = slot("optimizer", "updates the weights", optional=True)
    schedule: kinds.ScheduleSpec | None = slot("schedule", "schedule of the learning rate", optional=True)
    batch_ramp: BatchRamp | None = group("a smaller batch at first; null for the same in every step", default=None)
    start: Start | None = group("trained weights to start from; null for fresh ones", default=None)
    stop: Stop | None = group("early stopping", default=None)
    compare: Compare | None = group("the dense model to compare with", default=None)
    non_finite: Literal["stop", "skip"] = option(
        "stop", "when a loss or gradient is NaN or infinite: end the run, or skip that optimizer step"
    )
    compile: bool = option(False, "compile the model's blocks with torch.compile; worth it on GPUs and in long runs")
    checkpoints: Checkpoints = group("which checkpoints are kept", default=Checkpoints())
    trainer: TrainerSpec = group("the trainer and its parts", default=TrainerSpec())

    def check(self) -> Iterable[str]:
        """Conflicts of model, data and objective: what they yield and take, and the size of the vocabulary.

        ``start`` excludes ``compare``, for the dense baseline has no trained weights to start from.
        """
        if self.start is not None and self.compare is not None:
            yield "start and compare are both given, but the dense model has no weights to start from; compare: null"
        if self.data is not None and self.data.yields != self.model.takes:
            yield (
                f"data {type(self.data).__name__} yields '{self.data.yields}', "
                f"but model {type(self.model).__name__} takes '{self.model.takes}'; "
                "others: moekit ls data, moekit ls models"
            )
        given = None if self.data is None else self.data.num_tokens()
        known = getattr(self.model, "vocab", None)
        if given is not None and isinstance(known, int) and given > known:
            option = "data.vocab" if hasattr(self.data, "vocab") else "data.tokenizer.vocab"
            yield (
                f"data {type(self.data).__name__} yields tokens of a vocab of {given}, "
                f"but model {type(self.model).__name__} has one of {known}; vocab: ${{{option}}} keeps them equal"
            )
        if self.objective is not None and self.model.offers() not in self.objective.takes:
            yield (
                f"objective {type(self.objective).__name__} takes {', '.join(sorted(self.objective.takes))}, "
                f"but model {type(self.model).__name__} gives '{self.model.offers()}'"
            )
        for name, evaluator in self.evaluators.items():
            yield from (f"evaluator '{name}': {conflict}" for conflict in self._misfit(evaluator))
        if self.stop is not None and self.objective is not None and self.stop.metric not in (names := self.logged()):
            near = nearest(self.stop.metric, names)
            yield (
                f"stop.metric: training logs no metric '{self.stop.metric}'"
                + (f" (did you mean '{near}'?)" if near else "")
                + f"; the metrics are {', '.join(names)}"
            )

    def _misfit(self, evaluator: kinds.EvaluatorSpec) -> Iterable[str]:
        if self.data is None:
            return ["it needs data, and the recipe has none"]
        if self.data.yields not in evaluator.takes:
            name, takes = type(evaluator).__name__, ", ".join(sorted(evaluator.takes))
            return [f"{name} takes {takes}, but data {type(self.data).__name__} yields '{self.data.yields}'"]
        return evaluator.check_data(self.data)

    def logged(self) -> list[str]:
        """Names of the metrics that training and validation may log, by what the recipe's parts declare.

        Not in it are what evaluators find at the end.
        """
        names = dict.fromkeys(["objective", "loss", *metrics_of(self, without="evaluator")])
        return [*(f"{part}/{name}" for part in ("train", "val") for name in names), "val/max_violation"]
