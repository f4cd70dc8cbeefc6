"""The capacity dispatcher: every expert has C slots; pairs beyond them are dropped. Torch-free: options, component."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import DispatcherSpec, Form, RouterSpec


class Capacity(DispatcherSpec):
    """Options of the capacity dispatcher.

    A group of S tokens with K choices each gets C slots at each of E experts: ``factor · K · S / E`` counting pairs,
    ``factor · S / E`` counting tokens; rounded, raised to ``at_least``, raised to a multiple, and never more than S.
    (Papers state the factor either way: 1.0 by pairs is 2.0 by tokens when K = 2.) S includes padding, to keep shapes
    static; padding itself takes no slot. A factor is read as the nearest fraction with a denominator of at most ten
    million, so 1.1 means 11/10, and a quotient computed in floats is exact. ``slots`` states C itself instead.

    S counts the tokens of one forward pass. Decoding token by token with a cache has groups of a few tokens, so it
    drops other pairs than a pass over whole sequences; none, when it decodes a single sequence.
    """

    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    dropless: ClassVar[bool] = False

    factor: float | None = option(None, "slots over what an even load needs; none: 1.25, or by slots", gt=0)
    eval_factor: float | None = option(None, "the factor in evaluation; none: the same", gt=0)
    slots: int | None = option(
        None, "C itself, slots of an expert in each group, in training and evaluation; none: by factor", ge=1
    )
    count: Literal["pairs", "tokens"] = option(
        "pairs", "what an even load is: K·S/E (pairs), or S/E whatever K is (tokens)"
    )
    rounding: Literal["ceil", "floor", "round"] = option("ceil", "of C to a whole number; round: half to even")
    at_least: int = option(1, "C is raised to this", ge=1)
    multiple: int = option(1, "C is raised to a multiple of this", ge=1)
    order: Literal["position", "choice", "priority", "affinity"] = option(
        "position",
        "which pairs get slots first. position: token by token; choice: every first choice before any second; "
        "priority: as choice, tokens sorted by their best affinity; affinity: each expert's highest affinities",
    )
    per: Literal["batch", "sequence"] = option("batch", "a group is the whole batch of one forward pass, or a sequence")
    group_size: int | None = option(None, "splits that further, into groups of this many tokens", ge=1)

    def check(self) -> Iterable[str]:
        """C is given by a factor or as it is, not both."""
        if self.slots is None:
            return
        defaults = type(self)()
        for name in ("factor", "eval_factor", "count", "rounding", "at_least", "multiple"):
            if (value := getattr(self, name)) != getattr(defaults, name):
                yield f"slots={self.slots} is C itself, so {name}={value} has no effect: give one of them"

    def check_router(self, router: RouterSpec) -> Iterable[str]:
        """K is the choices of a token, not all experts."""
        if router.lists_all and self.count == "pairs" and self.slots is None:
            yield (
                f"count=pairs: router {type(router).__name__} lists all experts for each token, so that nothing would "
                "be dropped; set count=tokens and a factor by tokens, or slots"
            )

    def causal(self) -> bool:
        """False where affinities of later tokens can displace a token's pair: a decoder must not drop by them.

        ``choice`` leaks a little and counts as causal, as GShard's decoder does: a later token's first choice can take
        the slot of an earlier token's second. ``position`` leaks nothing. (C itself depends on the number of tokens.)
        """
        return self.order in ("position", "choice")
