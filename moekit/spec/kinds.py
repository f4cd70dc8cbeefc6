"""The kinds of component, each with the base class of its specs and the claims a spec makes.

Claims are class variables: plain facts that composition reads without importing torch (may this dispatcher carry
that routing?) and that the conformance checks hold the built class to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from moekit.errors import PluginError
from moekit.spec.fields import Spec, option, slot, slots
from moekit.spec.reach import ranks_reached

Form = Literal["token_choice", "expert_choice", "soft"]
ALL_FORMS: frozenset[Form] = frozenset({"token_choice", "expert_choice", "soft"})
PAIR_FORMS: frozenset[Form] = frozenset({"token_choice", "expert_choice"})


class RouterSpec(Spec):
    """Base of router specs. A router turns tokens into a ``Routing``."""

    kind: ClassVar[str] = "router"
    form: ClassVar[Form] = "token_choice"  # which form of routing comes out
    takes_bias: ClassVar[bool] = True  # whether a selection bias has an effect
    causal: ClassVar[bool] = True  # whether a token's route is independent of later tokens
    gives_smooth_load: ClassVar[bool] = False  # whether routings carry ``smooth_load_E`` in training

    def active(self, num_experts: int) -> float:
        """How many experts one token runs through, on average. Override.

        Raises:
            PluginError: the router's spec does not say.
        """
        raise PluginError(
            f"{type(self).__name__} does not say how many experts a token runs through\n"
            "  expected a method active(self, num_experts) in that spec"
        )

    def ranks_reached(self, num_experts: int, ranks: int) -> float:
        """How many of ``ranks`` that share the experts hold one of a token's choices, on average, all being likely.

        To be overridden where some choices exclude others, beyond that no expert is chosen twice.
        """
        return ranks_reached(num_experts, ranks, min(self.active(num_experts), num_experts))

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

    def causal(self) -> bool:
        """Whether what becomes of a token is independent of later tokens."""
        return True

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Conflicts with the number of routed experts, each a sentence. Asked by the layer's spec; override."""
        return ()


class BalancerSpec(Spec):
    """Base of balancer specs. A balancer answers a routing with a loss, a selection bias, or both."""

    kind: ClassVar[str] = "balancer"
    forms: ClassVar[frozenset[Form]] = ALL_FORMS
    gives_bias: ClassVar[bool] = False
    at_balance: ClassVar[float | None] = 1.0  # the loss under uniform affinities and even load; None: no fixed value

    def check_router(self, router: RouterSpec, num_experts: int) -> Iterable[str]:
        """Conflicts with the router or the number of experts, each a sentence. Asked by the layer's spec; override."""
        return ()


class AttentionSpec(Spec):
    """Base of attention specs."""

    kind: ClassVar[str] = "attention"
    caches: ClassVar[bool] = False  # whether ``forward``, where it is causal, takes a ``cache`` of earlier positions


class ModelSpec(Spec):
    """Base of model specs."""

    kind: ClassVar[str] = "model"
    takes: ClassVar[str] = "tokens"  # what data must yield: 'tokens', 'pairs' (source and target) or 'cases'
    gives: ClassVar[str] = "next_token"  # what an objective may ask for: 'next_token', 'mixture', 'prediction'

    def offers(self) -> str:
        """What a model with these options gives: ``gives``, unless the options decide it."""
        return self.gives

    def dense_baseline(self) -> ModelSpec | None:
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
    # it moves the pieces of a tensor as it would the whole: number by number, or by sums over ranks (``Reduces``)
    takes_shards: ClassVar[bool] = True


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
        yield from self.dispatcher.check_experts(self.experts.count)
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
                    f"but router {type(self.router).__name__} takes none: balance by a loss, or choose another router"
                )
            for conflict in balancer.check_router(self.router, self.experts.count):
                yield f"balancer '{name}': {conflict}"

    def leak(self) -> str:
        """The part by which later tokens would reach earlier ones, in words; empty when there is none."""
        if not self.router.causal:
            return f"router {type(self.router).__name__}"
        return "" if self.dispatcher.causal() else f"dispatcher {type(self.dispatcher).__name__}"
