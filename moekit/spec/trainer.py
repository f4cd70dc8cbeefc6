"""``TrainerSpec``: the options of ``lightning.Trainer`` that a recipe may set, with the parts that a run is made of."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from moekit.spec.fields import Spec, option, slot, slots
from moekit.spec.imported import Imported
from moekit.spec.kinds import CallbackSpec, LoggerSpec, StrategySpec

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
        "limit_test_batches": "a run trains and validates; it has no test set",
        "limit_predict_batches": "a run trains and validates; it predicts nothing",
        "enable_autolog_hparams": "loggers get the whole recipe",
    }

    max_steps: int = option(1000, "optimizer steps", ge=1)
    min_steps: int | None = option(None, "optimizer steps that early stopping does not cut", ge=1)
    max_time: str | dict[str, int] | None = option(None, "stop after this time: DD:HH:MM:SS, or {hours: 2}")
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
    limit_train_batches: int | float | None = option(None, "Lightning's limit of micro-batches of an epoch", ge=0)
    limit_val_batches: int | float | None = option(
        None, "batches of a validation, of all ranks: their number, or a fraction", ge=0
    )
    overfit_batches: int | float = option(0, "train and validate on so many batches: their number, or a fraction", ge=0)
    num_sanity_val_steps: int = option(0, "validation batches to try before training; -1: all", ge=-1)
    fast_dev_run: int | bool = option(False, "try so many batches (true: 1), without logs and checkpoints")
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
        """Validations within a step; a precision or a callback that the strategy cannot have."""
        interval, accumulate = self.val_check_interval, self.accumulate_grad_batches
        if interval is not None and interval % accumulate:
            yield (
                f"val_check_interval={interval} counts micro-batches, and is not a whole number of steps of "
                f"{accumulate}: the checkpoint of a validation within a step would lose its gradients"
            )
        if isinstance(self.strategy, StrategySpec):
            yield from self.strategy.check_precision(self.precision)
        for name, callback in self.callbacks.items() if self.shards else ():
            if isinstance(callback, CallbackSpec) and not callback.takes_shards:
                yield f"callback '{name}' ({type(callback).__name__}) needs whole weights, but the strategy shards them"

    @property
    def shards(self) -> bool:
        """Whether the strategy builds the model, in shards."""
        return isinstance(self.strategy, StrategySpec) and self.strategy.shards
