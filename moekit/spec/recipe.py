"""``Recipe``, the root of every YAML file, and its groups of options: the paper, the trainer with its parts, ..."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from moekit.errors import nearest
from moekit.spec import kinds
from moekit.spec.fields import Spec, group, metrics_of, option, slot, slots
from moekit.spec.kinds import CallbackSpec, Imported, LoggerSpec, StrategySpec


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
    """Fine-tuning: a new optimizer, and trained weights, which must fit exactly, but for new balancers and adapters."""

    run: str = option(help="a run folder, a checkpoint, or a run's name (its latest run below runs/)")
    convert: kinds.ConverterSpec | None = slot(
        "converter", "makes the weights out of the run's, whose model has another form", optional=True
    )
    train: list[str] = option(
        [], "the only parts that are trained, by a word of their tensors' names, such as experts (default: all)"
    )
    freeze: list[str] = option([], "parts that are not trained, by a word of their tensors' names, such as router")
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


Precision = Literal[
    "transformer-engine", "transformer-engine-float16", "16-true", "16-mixed", "bf16-true", "bf16-mixed", "32-true",
    "64-true", "64", "32", "16", "bf16",
]  # fmt: skip
NO_EPOCHS = "training samples its data and has no epochs"


class TrainerSpec(Spec):
    """The trainer: Lightning's options, with defaults for runs counted in optimizer steps."""

    refused: ClassVar[Mapping[str, str]] = {
        "default_root_dir": "every file of a run goes to the run's folder",
        "plugins": "it takes Python objects; in Python, give them to a Trainer around LitMoE",
        "use_distributed_sampler": "moekit samples by seed, step and rank itself, so that a run resumes exactly",
        "barebones": "it turns off the logs and checkpoints that a run is made of",
        "model_registry": "moekit uploads nothing",
        "max_epochs": f"{NO_EPOCHS}; set trainer.max_steps",
        "min_epochs": f"{NO_EPOCHS}; set trainer.min_steps",
        "check_val_every_n_epoch": f"{NO_EPOCHS}; set trainer.val_check_interval",
        "reload_dataloaders_every_n_epochs": NO_EPOCHS,
        "limit_train_batches": f"{NO_EPOCHS}; set trainer.max_steps",
        "overfit_batches": "each step samples a new batch; to overfit, train on a small data set",
        "limit_test_batches": "a run trains and validates; it has no test set",
        "limit_predict_batches": "a run trains and validates; it predicts nothing",
        "enable_autolog_hparams": "loggers get the whole recipe",
    }

    max_steps: int = option(1000, "optimizer steps", ge=1)
    min_steps: int | None = option(None, "optimizer steps that early stopping does not cut", ge=1)
    max_time: str | dict[str, int] | None = option(
        None, "end after this time of training: DD:HH:MM:SS, or {hours: 2}; a resumed run has as much again"
    )
    accumulate_grad_batches: int = option(1, "micro-batches per optimizer step, on each rank", ge=1)
    gradient_clip_val: float | None = option(None, "largest norm of the gradient of a step", ge=0)
    gradient_clip_algorithm: Literal["norm", "value"] | None = option(
        None, "clip the norm of all gradients (default), or each value"
    )
    precision: Precision | None = option(None, "default: bf16-mixed on a GPU that supports bf16, else 32-true")
    accelerator: str = option("auto", "cpu, gpu, mps, or auto")
    devices: int | str | list[int] = option(1, "devices of each machine: how many, which, or auto")
    num_nodes: int = option(1, "machines", ge=1)
    strategy: StrategySpec | Imported | None = slot(
        "strategy", "how several ranks train together (default: Lightning's choice)", optional=True
    )
    callbacks: Mapping[str, CallbackSpec | Imported] = slots("callback", "what is called during training")
    logger: Mapping[str, LoggerSpec | Imported] = slots("logger", "loggers, in addition to moekit's own files")
    val_check_interval: int | None = option(
        None, "micro-batches between validations, each with a checkpoint (default: 10 validations in a run)", ge=1
    )
    limit_val_batches: int | float | None = option(
        None, "batches of a validation, of all ranks (default: all); 0: none, checkpoints are saved as often", ge=0
    )
    num_sanity_val_steps: int = option(0, "validation batches to try before training; -1: all", ge=-1)
    fast_dev_run: int | bool = option(False, "try so many batches (true: 1), without logs")
    log_every_n_steps: int | None = option(
        None, "optimizer steps between logged steps (default: 100 logged steps in a run, at most 25 apart)", ge=1
    )
    enable_checkpointing: bool = option(True, "save checkpoints")
    enable_progress_bar: bool = option(True, "show the progress of training")
    enable_model_summary: bool = option(False, "print Lightning's summary of the model")
    deterministic: bool | Literal["warn"] | None = option(
        None, "use only deterministic operations; warn: where there are any"
    )
    benchmark: bool | None = option(None, "let cuDNN choose the fastest convolutions")
    inference_mode: bool | None = option(
        None, "validate in inference mode instead of no_grad (default: unless the strategy shards)"
    )
    profiler: str | None = option(None, "Lightning's profiler: simple, advanced, pytorch or xla")
    detect_anomaly: bool = option(False, "name the operation whose gradient is NaN; slow")
    sync_batchnorm: bool = option(False, "share the statistics of batch normalisation between ranks")

    def check(self) -> Iterable[str]:
        """Validations within a step or of a fraction; a precision, accumulation or callback that the strategy lacks."""
        interval, accumulate = self.val_check_interval, self.accumulate_grad_batches
        if interval is not None and interval % accumulate:
            yield (
                f"val_check_interval={interval} counts micro-batches, and is not a whole number of steps of "
                f"{accumulate}: the checkpoint of a validation within a step would lose its gradients"
            )
        if isinstance(limit := self.limit_val_batches, float):
            yield f"limit_val_batches={limit} is not a number of batches: a fraction of an unknown number; null: all"
        if isinstance(self.strategy, StrategySpec):
            yield from self.strategy.check_precision(self.precision)
            yield from self.strategy.check_accumulation(accumulate)
        for name, callback in self.callbacks.items() if self.shards else ():
            if isinstance(callback, CallbackSpec) and not callback.takes_shards:
                yield f"callback '{name}' ({type(callback).__name__}) needs whole weights, but the strategy shards them"

    @property
    def shards(self) -> bool:
        """Whether the strategy builds the model, in shards."""
        return isinstance(self.strategy, StrategySpec) and self.strategy.shards


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
    matmul_precision: Literal["highest", "high", "medium"] | None = option(
        None,
        "torch.set_float32_matmul_precision: how exact fp32 products are on a GPU; high: TF32, several times as fast "
        "(default: torch's, highest)",
    )
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
        if self.data is not None and self.data.marks_documents() and not self.model.takes_documents():
            yield f"data.documents=masked, but {type(self.model).__name__} cannot keep documents apart; try joined"
        if self.objective is not None and self.model.offers() not in self.objective.takes:
            yield (
                f"objective {type(self.objective).__name__} takes {', '.join(sorted(self.objective.takes))}, "
                f"but model {type(self.model).__name__} gives '{self.model.offers()}'"
            )
        for name, evaluator in self.evaluators.items():
            yield from (f"evaluator '{name}': {conflict}" for conflict in self._misfit(evaluator))
        if self.stop is not None and self.stop.metric.startswith("val/") and self.trainer.limit_val_batches == 0:
            yield f"stop.metric: {self.stop.metric} is never known, for trainer.limit_val_batches=0 validates nothing"
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
