"""moekit's own kinds and verbs, offered by the same hooks as those of other plugins."""

from __future__ import annotations

from moekit.cli.core import VERBS
from moekit.component import Kind, Verb
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


@hookimpl
def moekit_kinds() -> list[Kind]:
    """The kinds of component that moekit itself uses."""
    return [
        Kind(
            name="router",
            spec="moekit.spec.kinds:RouterSpec",
            summary="turns tokens into a routing",
            context=("dims",),
            makes="moekit.contracts:Router",
        ),
        Kind(
            name="expert",
            spec="moekit.spec.kinds:ExpertSpec",
            summary="experts of one shape, with stacked weights",
            context=("dims",),
            makes="moekit.contracts:ExpertBank",
        ),
        Kind(
            name="dispatcher",
            spec="moekit.spec.kinds:DispatcherSpec",
            summary="sends tokens to their experts and sums what comes back",
            context=("dims",),
            makes="moekit.contracts:Dispatcher",
        ),
        Kind(
            name="balancer",
            spec="moekit.spec.kinds:BalancerSpec",
            summary="keeps the load even, by a loss or a selection bias",
            context=("dims",),
            makes="moekit.contracts:Balancer",
        ),
        Kind(
            name="attention",
            spec="moekit.spec.kinds:AttentionSpec",
            summary="a module x_BSD -> y_BSD of width D = dim; if causal, a position attends to none after it",
            context=("dim", "causal"),
            makes="torch.nn:Module",
            plural="attention",
        ),
        Kind(
            name="model",
            spec="moekit.spec.kinds:ModelSpec",
            summary="a whole model",
            makes="moekit.contracts:Model",
        ),
        Kind(
            name="objective",
            spec="moekit.spec.kinds:ObjectiveSpec",
            summary="turns a model's output and a batch into a loss",
            makes="moekit.contracts:Objective",
        ),
        Kind(
            name="data",
            spec="moekit.spec.kinds:DataSpec",
            summary="the training and validation data",
            makes="moekit.contracts:Data",
            plural="data",
        ),
        Kind(
            name="tokenizer",
            spec="moekit.spec.kinds:TokenizerSpec",
            summary="turns text into tokens and back",
            makes="moekit.contracts:Tokenizer",
        ),
        Kind(
            name="evaluator",
            spec="moekit.spec.kinds:EvaluatorSpec",
            summary="scores and pictures of a trained model, at the end of a run",
            makes="moekit.contracts:Evaluator",
        ),
        Kind(
            name="exporter",
            spec="moekit.spec.kinds:ExporterSpec",
            summary="writes a trained model for other programs: moekit export --format NAME",
            makes="moekit.contracts:Exporter",
        ),
        Kind(
            name="optimizer",
            spec="moekit.spec.kinds:OptimizerSpec",
            summary="updates the weights",
            context=("model",),
            makes="torch.optim:Optimizer",
        ),
        Kind(
            name="schedule",
            spec="moekit.spec.kinds:ScheduleSpec",
            summary="a function of the step that multiplies the learning rate",
            context=("total_steps",),
        ),
        Kind(
            name="callback",
            spec="moekit.spec.kinds:CallbackSpec",
            summary="is called by the Trainer during training",
            makes="lightning.pytorch.callbacks:Callback",
            imports="lightning.pytorch.callbacks:Callback",
        ),
        Kind(
            name="logger",
            spec="moekit.spec.kinds:LoggerSpec",
            summary="gets the metrics of every logged step",
            context=("run",),
            makes="lightning.pytorch.loggers:Logger",
            imports="lightning.pytorch.loggers:Logger",
        ),
        Kind(
            name="strategy",
            spec="moekit.spec.kinds:StrategySpec",
            summary="places the model on devices and combines the ranks' gradients",
            context=("recipe",),
            makes="lightning.pytorch.strategies:Strategy",
            plural="strategies",
            imports="lightning.pytorch.strategies:Strategy",
        ),
    ]


@hookimpl
def moekit_verbs() -> list[Verb]:
    """moekit's own verbs."""
    return [Verb(name=name, target=f"moekit.cli.{name}", summary=summary) for name, summary in VERBS.items()]
