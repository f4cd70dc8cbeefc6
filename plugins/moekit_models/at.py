"""Which layers of a stack are mixtures, how weights are drawn, and the width that makes a dense stack as dear.

Torch-free: what the specs of the decoder and of the encoder-decoder share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from moekit.spec.fields import Spec, fields_of, option
from moekit.spec.kinds import ExpertSpec, MoE


@dataclass(frozen=True, kw_only=True)
class At(Spec):
    """Which layers are mixtures: exactly one of three ways to say it. Layers are counted from 0."""

    first: int | None = option(None, "layers from this one on", ge=0)
    every: int | None = option(None, "every n-th layer: n - 1, 2n - 1, ...", ge=1)
    layers: list[int] | None = option(None, "these layers")

    def check(self) -> Iterable[str]:
        """Exactly one way, and no layer before the first."""
        given = [name for name in ("first", "every", "layers") if getattr(self, name) is not None]
        if len(given) != 1:
            yield f"give exactly one of first, every, layers (given: {', '.join(given) or 'none'})"
        elif self.layers is not None and (len(set(self.layers)) < len(self.layers) or min(self.layers, default=0) < 0):
            yield f"layers={list(self.layers)} must be different numbers from 0"

    def indices(self, depth: int) -> tuple[int, ...]:
        """The mixture layers of a stack of ``depth`` layers, in order."""
        if self.first is not None:
            return tuple(range(self.first, depth))
        if self.every is not None:
            return tuple(range(self.every - 1, depth, self.every))
        return tuple(sorted(self.layers or ()))

    def check_depth(self, depth: int, stack: str) -> Iterable[str]:
        """The sentence that names layers which ``stack``, of ``depth`` layers, does not have; or that it has none."""
        indices = self.indices(depth)
        if not indices or indices[-1] >= depth:
            yield f"moe.at names {list(indices) or 'no layer'}, but the {stack} has layers 0 to {depth - 1}"


def no_leak(moe: MoE, reader: str, where: str = "") -> Iterable[str]:
    """The sentence that refuses a mixture by which later tokens would reach earlier ones, with the way out."""
    if leak := moe.leak():
        use = "topk or noisy_topk" if leak.startswith("router") else "grouped, or capacity with order=position"
        yield (
            f"{leak} would leak later tokens{where}: it is not causal, and {reader} predicts the next token; use {use}"
        )


def check_init(std: float | None, scale: float | None) -> Iterable[str]:
    """The sentence that refuses two ways of drawing weights at once."""
    if std is not None and scale is not None:
        yield f"init_std={std} and init_scale={scale} are two ways to draw weights: set one of them to null"


def dense_equivalent(
    ffn: ExpertSpec, moe: MoE, dim: int, *, layers: int, mixtures: int, dense_too: bool = False
) -> ExpertSpec | None:
    """``ffn``, as wide as makes every layer do the mean of the feed-forward multiply-adds that a token causes now.

    Args:
        ffn: the feed-forward part of dense layers.
        moe: the mixtures; their routers are left out of the sum.
        dim: D, width of the tokens.
        layers: how many layers there are.
        mixtures: how many of them are mixtures.
        dense_too: whether each mixture has a dense part beside it.

    Returns:
        None where ``ffn`` has no ``hidden`` width to set.
    """
    if "hidden" not in fields_of(type(ffn)):
        return None
    from moekit.params import multiply_adds  # torch: only when a twin is asked for

    dense = multiply_adds(ffn, dim)
    mixture = moe.router.active(moe.experts.count) * multiply_adds(moe.experts, dim)
    mixture += 0 if moe.shared is None else moe.shared.count * multiply_adds(moe.shared, dim)
    mixture += dense if dense_too else 0
    mean = (mixtures * mixture + (layers - mixtures) * dense) / layers
    hidden = max(1, round(ffn.hidden * mean / dense))  # type: ignore[attr-defined]
    return replace(ffn, hidden=hidden)  # type: ignore[call-arg]
