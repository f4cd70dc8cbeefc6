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
        _kind("router", "turns tokens into a routing", "moekit.contracts:Router", ("dims",)),
        _kind("expert", "experts of one shape, with stacked weights", "moekit.contracts:ExpertBank", ("dims",)),
        _kind(
            "dispatcher",
            "sends tokens to their experts and sums what comes back",
            "moekit.contracts:Dispatcher",
            ("dims",),
        ),
        _kind("balancer", "keeps the load even, by a loss or a selection bias", "moekit.contracts:Balancer", ("dims",)),
        _kind(
            "attention",
            "a module x_BSD -> y_BSD of width D = dim; if causal, a position attends to none after it",
            "torch.nn:Module",
            ("dim", "causal"),
            plural="attention",
        ),
        _kind("model", "a whole model", "moekit.contracts:Model"),
        _kind("objective", "turns a model's output and a batch into a loss", "moekit.contracts:Objective"),
        _kind("data", "the training and validation data", "moekit.contracts:Data", plural="data"),
        _kind("tokenizer", "turns text into tokens and back", "moekit.contracts:Tokenizer"),
        _kind("evaluator", "scores and pictures of a trained model, at the end of a run", "moekit.contracts:Evaluator"),
        _kind(
            "exporter",
            "writes a trained model for other programs: moekit export --format NAME",
            "moekit.contracts:Exporter",
        ),
        _kind(
            "converter",
            "makes a run's first weights out of those of another model: start.convert",
            "moekit.contracts:Converter",
        ),
        _kind("optimizer", "updates the weights", "torch.optim:Optimizer", ("model",)),
        _kind("schedule", "a function of the step that multiplies the learning rate", "", ("total_steps",)),
        _kind(
            "callback", "is called by the Trainer during training", "lightning.pytorch.callbacks:Callback", imports=True
        ),
        _kind(
            "logger",
            "gets the metrics of every logged step",
            "lightning.pytorch.loggers:Logger",
            ("run",),
            imports=True,
        ),
        _kind(
            "strategy",
            "places the model on devices and combines the ranks' gradients",
            "lightning.pytorch.strategies:Strategy",
            ("recipe",),
            plural="strategies",
            imports=True,
        ),
    ]


def _kind(
    name: str, summary: str, makes: str, context: tuple[str, ...] = (), *, plural: str = "", imports: bool = False
) -> Kind:
    """A kind whose specs have their base class in ``moekit.spec.kinds``; ``imports``: slots also take classes."""
    spec = f"moekit.spec.kinds:{name.capitalize()}Spec"
    taken = makes if imports else ""
    return Kind(name=name, spec=spec, summary=summary, context=context, makes=makes, plural=plural, imports=taken)


@hookimpl
def moekit_verbs() -> list[Verb]:
    """moekit's own verbs."""
    return [Verb(name=name, target=f"moekit.cli.{name}", summary=summary) for name, summary in VERBS.items()]
