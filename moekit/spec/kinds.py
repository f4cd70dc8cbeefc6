"""The kinds of component, each with the base class of its specs and the capabilities a spec states.

A capability is a class variable that claims something of the component; by default nothing. Composition reads it
without torch (does this dispatcher take that form of routing?); the conformance kit tests whether it is true.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal, NamedTuple

from moekit.errors import PluginError
from moekit.spec.fields import Spec, option, slot, slots

Form = Literal["token_choice", "expert_choice", "soft"]
ALL_FORMS: frozenset[Form] = frozenset({"token_choice", "expert_choice", "soft"})
PAIR_FORMS: frozenset[Form] = frozenset({"token_choice", "expert_choice"})


class GroupLimit(NamedTuple):
    """A token chooses its experts in ``top_groups`` of ``groups`` equal groups of experts, in order.

    If ``per_group`` is not 0, it chooses that many in each; otherwise any of them.
    """

    groups: int = 1
    top_groups: int = 1
    per_group: int = 0


class RouterSpec(Spec):
    """Base of router specs. A router turns tokens into a ``Routing``."""

    kind: ClassVar[str] = "router"
    form: ClassVar[Form] = "token_choice"  # the form of the routings it returns
    takes_bias: ClassVar[bool] = False  # whether a selection bias has an effect
    causal: ClassVar[bool] = False  # whether a token's routing is independent of later tokens
    needs_tokens: ClassVar[bool] = False  # whether it reads token ids, which language models pass to it
    gives_smooth_load: ClassVar[bool] = False  # whether its routings have ``smooth_load_E`` in training
    lists_all: ClassVar[bool] = False  # whether its routings list every expert for each token, sent or not

    def active(self, num_experts: int) -> float:
        """The mean number of experts that one token runs through. Override.

        Raises:
            PluginError: the spec class does not override it.
        """
        raise PluginError(
            f"{type(self).__name__} does not say how many experts a token runs through\n"
            "  expected a method active(self, num_experts) in that spec"
        )

    def group_limit(self) -> GroupLimit:
        """How groups limit a token's choice, from which ``moekit plan`` computes traffic. Override."""
        return GroupLimit()

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Conflicts with the number of routed experts, one sentence each. Override; the spec of the layer calls it."""
        return ()


class ExpertSpec(Spec):
    """Base of expert specs: ``count`` experts of one shape with stacked weights."""

    kind: ClassVar[str] = "expert"
    count: int = option(1, "number of experts", ge=1)


class AdaptedSpec(ExpertSpec):
    """Base of the specs of experts that change others, whose weights are frozen (``Adapted``)."""

    base: ExpertSpec = slot("expert", "the experts that are changed; their number is count, next to base")

    def check(self) -> Iterable[str]:
        """The number of experts is said once."""
        if self.base.count != 1:
            yield f"base.count={self.base.count}: remove it; count={self.base.count} is an option next to base"

    def plain(self) -> ExpertSpec:
        """The experts without what changes them."""
        return replace(self.base, count=self.count)


class DispatcherSpec(Spec):
    """Base of dispatcher specs. A dispatcher sends tokens to their experts and sums what the experts return."""

    kind: ClassVar[str] = "dispatcher"
    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})  # forms of routing that it takes
    dropless: ClassVar[bool] = False  # whether every chosen pair is computed

    def causal(self) -> bool:
        """Whether a token's output is independent of later tokens: by default if it is dropless."""
        return self.dropless

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Conflicts with the number of routed experts, one sentence each. Override; the spec of the layer calls it."""
        return ()

    def check_router(self, router: RouterSpec) -> Iterable[str]:
        """Conflicts with the router, one sentence each. Override; the layer calls it."""
        return ()


class ExpertParallelSpec(DispatcherSpec):
    """Base of the specs of dispatchers that distribute a layer's experts over ranks, and exchange tokens."""

    size: int | None = option(
        None, "ranks that share the experts, with consecutive numbers; none: the strategy's ep, else all ranks", ge=1
    )
    local: DispatcherSpec = slot("dispatcher", "decides what is dropped; also computes on each rank, if it is dropless")


class BalancerSpec(Spec):
    """Base of balancer specs. A balancer keeps the load even by a loss, by a selection bias, or by both."""

    kind: ClassVar[str] = "balancer"
    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    gives_bias: ClassVar[bool] = False
    at_balance: ClassVar[float | None] = None  # the loss under uniform affinities and even load; None: no fixed value

    def check_router(self, router: RouterSpec, num_experts: int) -> Iterable[str]:
        """Conflicts with the router or the number of experts, one sentence each. Override; the layer calls it."""
        return ()


MOST_LAYERS = 10_000
"""The most layers of a stack, which are built one by one: more would fill the memory before anything is computed."""


class AttentionSpec(Spec):
    """Base of attention specs."""

    kind: ClassVar[str] = "attention"
    caches: ClassVar[bool] = False  # whether a causal ``forward`` takes a ``cache`` of earlier positions
    takes_documents: ClassVar[bool] = False  # whether ``forward`` takes ``document_BS``, whose documents it keeps apart

    def takes_cache(self) -> bool:
        """Whether it does with these options: ``caches``. Override where the options decide."""
        return self.caches

    def keeps_documents(self) -> bool:
        """The same of ``takes_documents``."""
        return self.takes_documents


class ModelSpec(Spec):
    """Base of model specs."""

    kind: ClassVar[str] = "model"
    # what its data must yield: 'tokens', 'pairs' (source and target), 'cases', or a word of yours
    takes: ClassVar[str] = "tokens"
    gives: ClassVar[str] = "next_token"  # its output: 'next_token', 'mixture', 'prediction', or a word of yours

    def takes_documents(self) -> bool:
        """Whether a model with these options reads ``Batch.document``, and keeps documents apart. Override it."""
        return False

    def plain(self) -> "ModelSpec":
        """The model without adapters of low rank, whose weights an export merges. Override where options add some."""
        return self

    def offers(self) -> str:
        """What a model with these options gives: ``gives``. Override where the options decide."""
        return self.gives

    def feed_forward_work(self, experts_per_token: float | None = None) -> float | None:
        """Multiply-adds of all feed-forward parts on one token, without routers; None if that is not known.

        Args:
            experts_per_token: routed experts that compute a token in a mixture layer, on average, as training measures
                it (``train/experts_per_token``); default: as many as the router chooses.
        """
        return None

    def dense_baseline(self, experts_per_token: float | None = None) -> "ModelSpec | None":
        """The dense baseline: as much ``feed_forward_work``, without experts; None if there is none."""
        return None


class ObjectiveSpec(Spec):
    """Base of objective specs. An objective turns a model's output and a batch into a loss."""

    kind: ClassVar[str] = "objective"
    takes: ClassVar[frozenset[str]] = frozenset({"next_token"})  # values of ModelSpec.gives


class DataSpec(Spec):
    """Base of data specs."""

    kind: ClassVar[str] = "data"
    yields: ClassVar[str] = "tokens"  # values of ModelSpec.takes

    def marks_documents(self) -> bool:
        """Whether batches have ``Batch.document``, which the model must then read. Override it."""
        return False

    def token_options(self) -> Sequence[str]:
        """The options that decide what a token is: a run keeps those of the weights it has. Override it for others."""
        return ("tokenizer",)

    def num_tokens(self) -> int | None:
        """The number of tokens, which a model's ``vocab`` must not be below; None if the data is not text.

        It is the option ``vocab`` of the data, or else that of its ``tokenizer``. Override it if neither is there.
        """
        tokenizer = getattr(self, "tokenizer", None)
        found = getattr(self, "vocab", tokenizer.vocab if isinstance(tokenizer, TokenizerSpec) else None)
        return found if isinstance(found, int) else None


class TokenizerSpec(Spec):
    """Base of tokenizer specs."""

    kind: ClassVar[str] = "tokenizer"
    vocab: int = option(256, "number of tokens, at most", ge=1)


class EvaluatorSpec(Spec):
    """Base of evaluator specs. An evaluator scores a trained model, or draws what it does."""

    kind: ClassVar[str] = "evaluator"
    takes: ClassVar[frozenset[str]] = frozenset({"tokens", "pairs", "cases"})  # values of DataSpec.yields

    def check_data(self, data: DataSpec) -> Iterable[str]:
        """Conflicts with the data, one sentence each. Override; the recipe calls it."""
        return ()


class ExporterSpec(Spec):
    """Base of exporter specs. An exporter writes a trained model for other programs."""

    kind: ClassVar[str] = "exporter"


class ConverterSpec(Spec):
    """Base of converter specs. A converter makes a model's first weights out of those of a model of another form."""

    kind: ClassVar[str] = "converter"


class OptimizerSpec(Spec):
    """Base of optimizer specs."""

    kind: ClassVar[str] = "optimizer"
    # a step on shards equals a step on whole tensors: it is elementwise, or sums over ranks
    takes_shards: ClassVar[bool] = False


class ScheduleSpec(Spec):
    """Base of learning-rate schedule specs."""

    kind: ClassVar[str] = "schedule"


class CallbackSpec(Spec):
    """Base of callback specs. A callback is called by the Trainer at every point of a run."""

    kind: ClassVar[str] = "callback"
    takes_shards: ClassVar[bool] = False  # whether it works with a model in shards


class LoggerSpec(Spec):
    """Base of logger specs. A logger gets the metrics of every logged step."""

    kind: ClassVar[str] = "logger"


class StrategySpec(Spec):
    """Base of strategy specs. A strategy places the model on devices and combines the ranks' gradients."""

    kind: ClassVar[str] = "strategy"
    shards: ClassVar[bool] = False  # whether it makes a ``moekit.parallel.strategy.ShardingStrategy``

    def check_precision(self, precision: str | None) -> Iterable[str]:
        """Conflicts with the Trainer's precision, one sentence each. Override; the spec of the trainer calls it."""
        return ()

    def check_accumulation(self, micro_batches: int) -> Iterable[str]:
        """The same of the number of micro-batches in a step."""
        return ()


class Imported(Spec):
    """A class of another library in a slot, named by its import path: ``{class: package.module.Name, ...}``.

    ``moekit.training.run.parts`` imports the class and checks the arguments that it is called with.
    """

    path: str = option(help="package.module.Name")
    arguments: dict[str, Any] = option({}, "plain values, by the names of the class")

    def check(self) -> Iterable[str]:
        """The path must be one."""
        if not is_import_path(self.path):
            yield f"class: '{self.path}' is not an import path; expected package.module.Name"

    @property
    def name(self) -> str:
        """The name of the class alone."""
        return self.path.rpartition(".")[2]


FOREIGN: Final = ("class_path", "_target_")
"""What other tools call ``class``."""


def is_import_path(path: object) -> bool:
    """Whether ``path`` has the form ``package.module.Name``."""
    return isinstance(path, str) and "." in path and all(part.isidentifier() for part in path.split("."))


class MoE(Spec):
    """A Mixture-of-Experts layer: router, experts, dispatcher and balancers."""

    router: RouterSpec = slot("router", "turns tokens into a routing")
    experts: ExpertSpec = slot("expert", "the routed experts")
    dispatcher: DispatcherSpec = slot(
        "dispatcher", "sends tokens to the experts and sums what comes back", default="kind"
    )
    shared: ExpertSpec | None = slot("expert", "shared experts: every token passes them, ungated", optional=True)
    balancers: Mapping[str, BalancerSpec] = slots("balancer", "what keeps the load even")
    gate_on: Literal["output", "input"] = option(
        "output", "what a gate multiplies: its expert's output, or, with one expert a token, its input (Llama 4)"
    )

    def check(self) -> Iterable[str]:
        """Conflicts between parts: too few experts, a form that one does not take, a selection bias without effect."""
        if "router" in self.balancers:
            yield "a balancer cannot be named 'router': the report has the router's own loss under that name"
        yield from self.router.check_experts(self.experts.count)
        yield from self.dispatcher.check_experts(self.experts.count)
        form = self.router.form
        if form not in self.dispatcher.forms:
            yield (
                f"{type(self.router).__name__} routes by '{form}', but dispatcher {type(self.dispatcher).__name__} "
                f"takes {', '.join(sorted(self.dispatcher.forms))}"
            )
        yield from self.dispatcher.check_router(self.router)
        yield from balancer_conflicts(self.router, self.experts.count, self.balancers)
        if self.gate_on == "input" and (
            form != "token_choice" or self.router.lists_all or self.router.active(self.experts.count) != 1
        ):
            yield "gate_on=input is for one expert a token, chosen by the token: set top_k=1, or gate_on=output"

    def leak(self) -> str:
        """The part that lets later tokens affect earlier ones, as ``router TopK``; empty if there is none."""
        if not self.router.causal:
            return f"router {type(self.router).__name__}"
        return "" if self.dispatcher.causal() else f"dispatcher {type(self.dispatcher).__name__}"


def balancer_conflicts(router: RouterSpec, num_experts: int, balancers: Mapping[str, BalancerSpec]) -> Iterator[str]:
    """Conflicts between a layer's router and its balancers, one sentence each."""
    for name, balancer in balancers.items():
        if router.form not in balancer.forms:
            yield (
                f"{type(router).__name__} routes by '{router.form}', but balancer '{name}' "
                f"({type(balancer).__name__}) takes {', '.join(sorted(balancer.forms))}"
            )
        if balancer.gives_bias and not router.takes_bias:
            yield (
                f"balancer '{name}' ({type(balancer).__name__}) gives a selection bias, "
                f"but router {type(router).__name__} takes none: balance by a loss, or choose another router"
            )
        for conflict in balancer.check_router(router, num_experts):
            yield f"balancer '{name}': {conflict}"
