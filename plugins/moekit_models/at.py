"""What the models' specs share: where mixtures are, common checks, and the width of the dense baseline. Torch-free."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from moekit.spec.fields import Spec, fields_of, option
from moekit.spec.kinds import ExpertSpec, MoE


class At(Spec):
    """Which layers are mixtures, by exactly one of three options. Layers are counted from 0."""

    first: int | None = option(None, "layers from this one on", ge=0)
    every: int | None = option(None, "every n-th layer: n - 1, 2n - 1, ...", ge=1)
    layers: list[int] | None = option(None, "these layers")

    def check(self) -> Iterable[str]:
        """Exactly one option is set, and layers are different numbers from 0."""
        given = [name for name in ("first", "every", "layers") if getattr(self, name) is not None]
        if len(given) != 1:
            yield f"give exactly one of first, every, layers (given: {', '.join(given) or 'none'})"
        elif self.layers is not None and (len(set(self.layers)) < len(self.layers) or min(self.layers, default=0) < 0):
            yield f"layers={list(self.layers)} must be different numbers from 0"

    def indices(self, depth: int) -> tuple[int, ...]:
        """The mixture layers of a stack of ``depth`` layers, in order."""
        return tuple(self._indices(depth))

    def _indices(self, depth: int) -> Sequence[int]:
        """The same as a range where there is one: a check costs no memory, however large ``depth`` is."""
        if self.first is not None:
            return range(self.first, depth)
        if self.every is not None:
            return range(self.every - 1, depth, self.every)
        return sorted(self.layers or ())

    def check_depth(self, depth: int, stack: str) -> Iterable[str]:
        """An error for layers that ``stack``, of ``depth`` layers, lacks, or for naming none."""
        indices = self._indices(depth)
        if not indices or indices[-1] >= depth:
            yield f"moe.at names {list(indices) or 'no layer'}, but the {stack} has layers 0 to {depth - 1}"


def no_leak(moe: MoE, reader: str, where: str = "") -> Iterable[str]:
    """An error, with a fix, for a mixture through which later tokens would influence earlier ones."""
    if leak := moe.leak():
        use = "topk or noisy_topk" if leak.startswith("router") else "grouped, or capacity with order=position"
        yield (
            f"{leak} would leak later tokens{where}: it is not causal, or does not claim it, and "
            f"{reader} predicts the next token; use {use}"
        )


def check_dense(ffn: ExpertSpec) -> Iterable[str]:
    """An error for a dense layer with several experts."""
    if ffn.count != 1:
        yield f"ffn.count={ffn.count} must be 1: a dense layer is one expert that every token passes"


def check_init(std: float | None, scale: float | None) -> Iterable[str]:
    """An error for two initialisations at once."""
    if std is not None and scale is not None:
        yield f"init_std={std} and init_scale={scale} both initialise weights: set one of them to null"


def dense_equivalent(
    ffn: ExpertSpec, moe: MoE, dim: int, *, layers: int, mixtures: int, dense_too: bool = False
) -> ExpertSpec | None:
    """``ffn`` with the width at which purely dense layers do as many multiply-adds a token as these layers.

    Args:
        ffn: the feed-forward part of dense layers.
        moe: the mixtures; their routers are not counted.
        dim: D, width of the tokens.
        layers: how many layers there are.
        mixtures: how many of them are mixtures.
        dense_too: whether each mixture has a dense part in addition.

    Returns:
        None if ``ffn`` has no ``hidden`` width to set.
    """
    if "hidden" not in fields_of(type(ffn)):
        return None
    from moekit.params import multiply_adds  # loads torch

    dense = multiply_adds(ffn, dim)
    mixture = moe.router.active(moe.experts.count) * multiply_adds(moe.experts, dim)
    mixture += 0 if moe.shared is None else moe.shared.count * multiply_adds(moe.shared, dim)
    mixture += dense if dense_too else 0
    mean = (mixtures * mixture + (layers - mixtures) * dense) / layers
    hidden = max(1, round(ffn.hidden * mean / dense))  # type: ignore[attr-defined]
    return replace(ffn, hidden=hidden)  # type: ignore[call-arg]
