"""What a benchmark measures: the options of ``moekit bench``, and the shapes of layers. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from moekit.errors import MoekitError, nearest

BENCHMARKS: Final = {
    "layer": "sparse layers, with each dispatcher and written by hand, against a dense layer of equal multiply-adds",
    "router": "routers: scores, and the choice of K of E experts",
    "dispatch": "dispatch and combine alone, with experts that do nothing",
    "step": "a training step of a recipe against its dense baseline or another library's model, and where time goes",
}
"""What can be measured, with its description."""

DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
MAX_THREADS: Final = 1024

_VALID_FOR: Final = {
    "shapes": ("layer", "router", "dispatch"),
    "tokens": ("layer", "router", "dispatch"),
    "growth": ("layer", "router", "dispatch"),
    "dispatchers": ("layer", "dispatch"),
    "explain": ("layer", "dispatch"),
    "routers": ("router",),
    "against": ("layer", "step"),
}
"""Options that only some benchmarks take."""

_FLAG: Final = {"shapes": "shape"}


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """The options of one ``moekit bench``.

    Attributes:
        what: a key of ``BENCHMARKS``.
        names: names of shapes; for ``step`` a recipe and its overrides.
        shapes: other shapes, each ``T,D,H,E,K``.
        tokens: T of every shape.
        dispatchers, routers: the ones to measure.
        against: other libraries.
        growth: ``experts`` or ``tokens``, to make a series of each shape; empty for none.
        device, dtype: empty for the default of the machine.
        threads: of torch on the CPU; 0 for torch's own choice.
        rounds, warmup: rounds that count, and rounds before them that do not.
        memory, explain, json: the switches of these names.

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
        for option, where in _VALID_FOR.items():
            if getattr(self, option) and self.what not in where:
                yield f"--{_FLAG.get(option, option)} is an option of {' and '.join(where)}, not of {self.what}"
        if self.what == "step":
            if not self.names:
                yield "step needs the name of a recipe or a file; list recipes: moekit ls recipes"
            if self.dtype not in ("", "float32", "bfloat16"):
                yield f"--dtype {self.dtype}: a training step runs in float32, or in bfloat16 (mixed precision)"
        if self.rounds < 1 or self.warmup < 1:
            yield "expected --rounds >= 1 and --warmup >= 1: the first round is slower than the others"
        if not 0 <= self.threads <= MAX_THREADS:
            yield f"expected --threads from 0 (torch's own choice) to {MAX_THREADS}"
        if self.tokens is not None and self.tokens < 1:
            yield "expected --tokens >= 1"


MODEL_TOKENS: Final = 16384
"""Tokens of the shapes that are named after models."""

CPU_MULTIPLY_ADDS: Final = 10**11
"""Multiply-adds of one forward pass beyond which a CPU would take minutes a round."""

GROWTHS: Final = ("experts", "tokens")
SERIES_OF_EXPERTS: Final = (8, 16, 32, 64, 128, 256)


class Shape(NamedTuple):
    """A layer's sizes: tokens, width, hidden width of an expert, experts, experts per token."""

    T: int
    D: int
    H: int
    E: int
    K: int

    def __str__(self) -> str:
        return " ".join(map(str, self))


SHAPES: Final = {
    "small": Shape(512, 128, 256, 8, 2),
    "base": Shape(4096, 512, 1024, 16, 2),
    "fine": Shape(4096, 512, 256, 64, 8),
    "many": Shape(4096, 512, 256, 256, 8),
    "tiny": Shape(4096, 128, 64, 64, 8),  # one layer of the recipe deepseek_v3
    "olmoe": Shape(MODEL_TOKENS, 2048, 1024, 64, 8),
    "qwen3_30b_a3b": Shape(MODEL_TOKENS, 2048, 768, 128, 8),
    "mixtral": Shape(MODEL_TOKENS, 4096, 14336, 8, 2),
    "deepseek_v3": Shape(MODEL_TOKENS, 7168, 2048, 256, 8),
}
"""The first five are small enough for any CPU; the others are one layer of a published model."""

FOR_CPU: Final = ("small", "base", "fine", "many", "tiny")
FOR_GPU: Final = ("base", "fine", "many", "olmoe", "qwen3_30b_a3b")


def select_shapes(
    names: Sequence[str], sizes: Sequence[str], tokens: int | None, default: Sequence[str]
) -> dict[str, Shape]:
    """The shapes of ``SHAPES`` by name, and those written as ``T,D,H,E,K``; the ``default`` names if neither is given.

    ``tokens`` replaces T of all of them.

    Raises:
        MoekitError: an unknown name, or a size that is not a shape.
    """
    found = {name: shape_named(name) for name in (names or ([] if sizes else default))}
    found |= {text: parse_shape(text) for text in sizes}
    return {name: shape if tokens is None else shape._replace(T=tokens) for name, shape in found.items()}


def shape_named(name: str) -> Shape:
    """The entry of ``SHAPES``.

    Raises:
        MoekitError: unknown name; the message suggests the nearest.
    """
    if name in SHAPES:
        return SHAPES[name]
    near = nearest(name, list(SHAPES))
    lines = [f"unknown shape '{name}' (shapes: {', '.join(SHAPES)})"]
    lines += [f"  did you mean '{near}'?"] if near else []
    raise MoekitError("\n".join([*lines, "  any other: --shape T,D,H,E,K"]))


def parse_shape(text: str) -> Shape:
    """The shape written as ``T,D,H,E,K``.

    Raises:
        MoekitError: not five positive whole numbers, or K above E.
    """
    parts = text.split(",")
    if len(parts) != 5 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise MoekitError(
            f"invalid shape '{text}'\n  expected T,D,H,E,K: five positive whole numbers, such as 4096,512,256,64,8"
        )
    shape = Shape(*map(int, parts))
    if shape.K > shape.E:
        raise MoekitError(f"shape '{text}' has K={shape.K} of E={shape.E} experts; expected K <= E")
    return shape


def titled(name: str, shape: Shape) -> str:
    """A shape's name and sizes; the sizes alone where they are the name."""
    return str(shape) if name == ",".join(map(str, shape)) else f"{name}: {shape}"


def series_of(name: str, shape: Shape, by: str) -> dict[str, Shape]:
    """A series of shapes: E from 8 to 256 at equal multiply-adds, or T from a sixteenth of the shape's to all.

    Raises:
        MoekitError: K is more than any E of the series.
    """
    if by == "experts":
        most = SERIES_OF_EXPERTS[-1]
        if shape.K > most:
            raise MoekitError(f"--growth experts: shape {name} has K={shape.K}, more than the series' E={most} experts")
        return {f"{name} E={E}": shape._replace(E=E) for E in SERIES_OF_EXPERTS if E >= shape.K}
    series = [shape.T >> i for i in (4, 3, 2, 1, 0)]
    return {f"{name} T={T}": shape._replace(T=T) for T in series if T}


def check_cpu_limits(what: str, name: str, shape: Shape, element_size: int, memory: int | None = None) -> None:
    """Rejects a shape that needs more than half of a machine's ``memory`` in bytes, or minutes a round on a CPU.

    Raises:
        MoekitError: the shape is too large; the message says which ``--tokens`` or ``--shape`` would do.
    """
    T, D, H, E, K = shape
    available = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def check_memory(needed: int, verb: str, advice: str = "") -> None:
        if needed > available // 2:
            advice = advice or f"fewer tokens: --tokens {_fewer(T, available / 2 / needed)}"
            raise MoekitError(
                f"shape {name} ({shape}) is too large for a CPU here: {verb} {needed / 1e9:.1f} GB of "
                f"{available / 1e9:.1f} GB\n  use --device cuda, or {advice}"
            )

    if what == "router":
        check_memory(4 * 4 * (T + E) * (D + E), "its tokens and scores take")  # fp32, a few times over
        return
    check_memory(4 * T * K * D * element_size, "moving its tokens takes")
    if what == "layer":
        smaller = f"fewer or smaller experts: --shape 256,{D},{H},{max(K, E // 32)},{K}"
        check_memory(2 * 3 * E * D * H * element_size, "its weights and gradients alone take", smaller)
        if (work := 3 * T * K * D * H) > CPU_MULTIPLY_ADDS:
            raise MoekitError(
                f"shape {name} ({shape}) is too much work for a CPU: {work:.1e} multiply-adds in each forward pass\n"
                f"  use --device cuda, or fewer tokens: --tokens {_fewer(T, CPU_MULTIPLY_ADDS / work)}"
            )


def _fewer(tokens: int, share: float) -> int:
    """The largest power of two that is at most this share of the tokens."""
    return 1 << (max(1, int(tokens * share)).bit_length() - 1)
