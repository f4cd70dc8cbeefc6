"""What was asked for on the command line. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from moekit.errors import MoekitError

WHAT: Final = {
    "layer": "sparse layers, each dispatcher and by hand, against a dense layer of as many multiply-adds",
    "router": "routers: scores, and the choice of K among E",
    "dispatch": "the way to the experts and back alone, with experts that do nothing",
    "step": "a whole training step of a recipe against its dense twin's or another library's, and where its time goes",
}
"""What can be measured, with what it means."""

DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
MOST_THREADS: Final = 1024

_ONLY: Final = {
    "shapes": ("layer", "router", "dispatch"),
    "tokens": ("layer", "router", "dispatch"),
    "growth": ("layer", "router", "dispatch"),
    "dispatchers": ("layer", "dispatch"),
    "explain": ("layer", "dispatch"),
    "routers": ("router",),
    "against": ("layer", "step"),
}
"""Options that only some take."""

_FLAG: Final = {"shapes": "shape"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, and how.

    Attributes:
        what: a key of ``WHAT``.
        names: names of shapes; for ``step`` a recipe and its overrides.
        shapes: other shapes, each ``T,D,H,E,K``.
        tokens: T of every shape.
        dispatchers, routers: those to measure.
        against: other libraries.
        growth: a series out of each shape, by ``experts`` or ``tokens``; empty for none.
        device, dtype: empty for what suits the machine.
        threads: of torch on the CPU; 0 for its own choice.
        rounds, warmup: rounds that count, and before them those that do not.
        memory, explain, json: whether to.

    Raises:
        MoekitError: options that do not belong to ``what``, or numbers out of range.
    """

    what: str
    names: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    tokens: int | None = None
    dispatchers: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    growth: str = ""
    device: str = ""
    dtype: str = ""
    threads: int = 0
    rounds: int = 9
    warmup: int = 2
    memory: bool = False
    explain: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise MoekitError("\n".join([f"moekit bench: {problem}" for problem in problems]))

    def _problems(self) -> Iterable[str]:
        for option, where in _ONLY.items():
            if getattr(self, option) and self.what not in where:
                yield f"--{_FLAG.get(option, option)} is an option of {' and '.join(where)}, not of {self.what}"
        if self.what == "step":
            if not self.names:
                yield "step of what? name a recipe or a file; list them: moekit ls recipes"
            if self.dtype not in ("", "float32", "bfloat16"):
                yield f"--dtype {self.dtype}: a training step runs in float32, or in bfloat16 (mixed precision)"
        if self.rounds < 1 or self.warmup < 1:
            yield "expected --rounds >= 1 and --warmup >= 1: the first round of anything is no measure of it"
        if not 0 <= self.threads <= MOST_THREADS:
            yield f"expected --threads from 0 (torch's own choice) to {MOST_THREADS}"
        if self.tokens is not None and self.tokens < 1:
            yield "expected --tokens >= 1"
