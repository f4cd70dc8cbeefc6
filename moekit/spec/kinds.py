"""The kinds of component, each with the base class of its specs and the claims a spec makes.

Claims are class variables: plain facts that composition reads without importing torch (may this dispatcher carry
that routing?) and that the conformance checks hold the built class to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from moekit.errors import PluginError
from moekit.spec.fields import Spec, group, option, slot, slots

Form = Literal["token_choice", "expert_choice", "soft"]
ALL_FORMS: frozenset[Form] = frozenset({"token_choice", "expert_choice", "soft"})
PAIR_FORMS: frozenset[Form] = frozenset({"token_choice", "expert_choice"})


class RouterSpec(Spec):
    """Base of router specs. A router turns tokens into a ``Routing``."""

    kind: ClassVar[str] = "router"
    form: ClassVar[Form] = "token_choice"  # which form of routing comes out
    takes_bias: ClassVar[bool] = True  # whether a selection bias has an effect
    causal: ClassVar[bool] = True  # whether a token's route is independent of later tokens

    def active(self, num_experts: int) -> float:
        """How many experts one token runs through, on average. Override.

        Raises:
            PluginError: the router's spec does not say.
        """
        raise PluginError(
            f"{type(self).__name__} does not say how many experts a token runs through\n"
            "  expected a method active(self, num_experts) in that spec"
        )

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Conflicts with the number of routed experts, each a sentence. Asked by the layer's spec; override."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ExpertSpec(Spec):
    """Base of expert specs. ``count`` experts of one shape, over stacked weights."""

    kind: ClassVar[str] = "expert"
    count: int = option(1, "number of experts", ge=1)


class DispatcherSpec(Spec):
    """Base of dispatcher specs. A dispatcher carries tokens to the experts and back along a routing."""

    kind: ClassVar[str] = "dispatcher"
    forms: ClassVar[frozenset[Form]] = PAIR_FORMS  # the forms of routing it takes
    dropless: ClassVar[bool] = True  # whether every chosen pair is computed


class BalancerSpec(Spec):
    """Base of balancer specs. A balancer answers a routing with a loss, a selection bias, or both."""

    kind: ClassVar[str] = "balancer"
    forms: ClassVar[frozenset[Form]] = ALL_FORMS
    gives_bias: ClassVar[bool] = False
    at_balance: ClassVar[float | None] = 1.0  # the loss under uniform affinities and even load; None: no fixed value


class AttentionSpec(Spec):
    """Base of attention specs."""

    kind: ClassVar[str] = "attention"


class ModelSpec(Spec):
    """Base of model specs."""

    kind: ClassVar[str] = "model"
    takes: ClassVar[str] = "tokens"  # what data must yield: 'tokens' or 'cases'
    gives: ClassVar[str] = "next_token"  # what an objective may ask for: 'next_token', 'mixture', 'prediction'

    def offers(self) -> str:
        """What a model with these options gives: ``gives``, unless the options decide it."""
        return self.gives

    def dense_twin(self) -> ModelSpec | None:
        """The dense model to compare with, of as many multiply-adds a token; None when there is none."""
        return None


class ObjectiveSpec(Spec):
    """Base of objective specs. An objective turns a model's output and a batch into a loss."""

    kind: ClassVar[str] = "objective"
    takes: ClassVar[frozenset[str]] = frozenset({"next_token"})  # values of ModelSpec.gives


class DataSpec(Spec):
    """Base of data specs. ``vocab``, where a spec has it, is the number of tokens; a model's must not be smaller."""

    kind: ClassVar[str] = "data"
    yields: ClassVar[str] = "tokens"  # values of ModelSpec.takes


class OptimizerSpec(Spec):
    """Base of optimizer specs."""

    kind: ClassVar[str] = "optimizer"


class ScheduleSpec(Spec):
    """Base of learning-rate schedule specs."""

    kind: ClassVar[str] = "schedule"


@dataclass(frozen=True, kw_only=True)
class MoE(Spec):
    """A Mixture-of-Experts layer: the router, experts, dispatcher and balancers that make one paper's idea."""

    router: RouterSpec = slot("router", "turns tokens into a routing")
    experts: ExpertSpec = slot("expert", "the routed experts")
    dispatcher: DispatcherSpec = slot("dispatcher", "carries tokens to the experts and back")
    shared: ExpertSpec | None = slot("expert", "experts that every token passes, ungated", optional=True)
    balancers: Mapping[str, BalancerSpec] = slots("balancer", "what keeps the load even")

    def check(self) -> Iterable[str]:
        """The parts must fit: enough experts, a dispatcher and balancers for the router's form, a taker for a bias."""
        yield from self.router.check_experts(self.experts.count)
        form = self.router.form
        if form not in self.dispatcher.forms:
            yield (
                f"{type(self.router).__name__} routes by '{form}', but dispatcher {type(self.dispatcher).__name__} "
                f"takes {', '.join(sorted(self.dispatcher.forms))}"
            )
        for name, balancer in self.balancers.items():
            if form not in balancer.forms:
                yield (
                    f"{type(self.router).__name__} routes by '{form}', but balancer '{name}' "
                    f"({type(balancer).__name__}) takes {', '.join(sorted(balancer.forms))}"
                )
            if balancer.gives_bias and not self.router.takes_bias:
                yield (
                    f"balancer '{name}' ({type(balancer).__name__}) gives a selection bias, "
                    f"but router {type(self.router).__name__} takes none"
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
    stop: Stop | None = group("early stopping", default=None)
    compare: Compare | None = group("the dense model to compare with", default=None)
    trainer: dict[str, Any] = option({}, "options of lightning.Trainer, passed through")

    def check(self) -> Iterable[str]:
        """Data must yield what the model takes, within its vocabulary; the objective must take what the model gives."""
        if self.data is not None and self.data.yields != self.model.takes:
            yield (
                f"data {type(self.data).__name__} yields '{self.data.yields}', "
                f"but model {type(self.model).__name__} takes '{self.model.takes}'"
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
