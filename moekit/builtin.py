"""moekit's own kinds and verbs, offered by the same hooks as those of other plugins."""

from __future__ import annotations

from moekit.cli.core import VERBS
from moekit.component import Kind, Verb
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


CONTRACTS = "moekit.contracts"
LIGHTNING = "lightning.pytorch"
KINDS = (
    ("router", "turns tokens into a routing", f"{CONTRACTS}:Router", "dims"),
    ("expert", "experts of one shape, with stacked weights", f"{CONTRACTS}:ExpertBank", "dims"),
    ("dispatcher", "sends tokens to their experts and sums what comes back", f"{CONTRACTS}:Dispatcher", "dims"),
    ("balancer", "keeps the load even, by a loss or a selection bias", f"{CONTRACTS}:Balancer", "dims"),
    (
        "attention",
        "a module x_BSD -> y_BSD of width D = dim; if causal, a position attends to none after it",
        "torch.nn:Module",
        "dim causal",
    ),
    ("model", "a whole model", f"{CONTRACTS}:Model", ""),
    ("objective", "turns a model's output and a batch into a loss", f"{CONTRACTS}:Objective", ""),
    ("data", "the training and validation data", f"{CONTRACTS}:Data", ""),
    ("tokenizer", "turns text into tokens and back", f"{CONTRACTS}:Tokenizer", ""),
    ("evaluator", "scores and pictures of a trained model, at the end of a run", f"{CONTRACTS}:Evaluator", ""),
    ("exporter", "writes a trained model for other programs: moekit export --format NAME", f"{CONTRACTS}:Exporter", ""),
    ("converter", "makes a run's first weights out of another model's: start.convert", f"{CONTRACTS}:Converter", ""),
    ("optimizer", "updates the weights", "torch.optim:Optimizer", "model"),
    ("schedule", "a function of the step that multiplies the learning rate", "", "total_steps"),
    ("callback", "is called by the Trainer during training", f"{LIGHTNING}.callbacks:Callback", ""),
    ("logger", "gets the metrics of every logged step", f"{LIGHTNING}.loggers:Logger", "run"),
    (
        "strategy",
        "places the model on devices and combines the ranks' gradients",
        f"{LIGHTNING}.strategies:Strategy",
        "recipe",
    ),
)
"""Of each kind the name, what its components do, the base class of what their targets make, and the target's context.

The base class of its specs is in ``moekit.spec.kinds``. A slot for a class of Lightning's also takes one by its path.
"""

PLURALS = {"attention": "attention", "data": "data", "strategy": "strategies"}


@hookimpl
def moekit_kinds() -> list[Kind]:
    """The kinds of component that moekit itself uses."""
    return [
        Kind(
            name=name,
            spec=f"moekit.spec.kinds:{name.capitalize()}Spec",
            summary=summary,
            context=tuple(context.split()),
            makes=makes,
            plural=PLURALS.get(name, ""),
            imports=makes if makes.startswith(LIGHTNING) else "",
        )
        for name, summary, makes, context in KINDS
    ]


@hookimpl
def moekit_verbs() -> list[Verb]:
    """moekit's own verbs."""
    return [Verb(name=name, target=f"moekit.cli.{name}", summary=summary) for name, summary in VERBS.items()]
