"""Shapes of layers by name, and series of them. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from moekit.errors import MoekitError, nearest

MODEL_TOKENS: Final = 16384
"""Tokens of the shapes that are named after models."""

WORK_OF_A_CPU: Final = 10**11
"""Multiply-adds of one forward pass beyond which a CPU would take minutes a round."""

GROWTHS: Final = ("experts", "tokens")
GROWN: Final = (8, 16, 32, 64, 128, 256)  # E of a series of experts


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
"""The first five for CPUs, of any make; the others are one layer of a published model."""

FOR_CPU: Final = ("small", "base", "fine", "many", "tiny")
FOR_GPU: Final = ("base", "fine", "many", "olmoe", "qwen3_30b_a3b")


def chosen(names: Sequence[str], sizes: Sequence[str], tokens: int | None, default: Sequence[str]) -> dict[str, Shape]:
    """The shapes asked for, by name.

    Args:
        names: names of ``SHAPES``.
        sizes: other shapes, each as ``T,D,H,E,K``.
        tokens: T of all of them, in place of their own.
        default: names to take when neither is given.

    Raises:
        MoekitError: an unknown name, or no shape.
    """
    found = {name: named(name) for name in (names or ([] if sizes else default))}
    found |= {text: parsed(text) for text in sizes}
    return {name: shape if tokens is None else shape._replace(T=tokens) for name, shape in found.items()}


def named(name: str) -> Shape:
    """The shape of a name.

    Raises:
        MoekitError: there is none; with the nearest.
    """
    if name in SHAPES:
        return SHAPES[name]
    near = nearest(name, list(SHAPES))
    lines = [f"unknown shape '{name}' (shapes: {', '.join(SHAPES)})"]
    lines += [f"  did you mean '{near}'?"] if near else []
    raise MoekitError("\n".join([*lines, "  any other: --shape T,D,H,E,K"]))


def parsed(text: str) -> Shape:
    """A shape written as ``T,D,H,E,K``.

    Raises:
        MoekitError: not five positive whole numbers, or K above E.
    """
    parts = text.split(",")
    if len(parts) != 5 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise MoekitError(
            f"'{text}' is no shape\n  expected T,D,H,E,K: five positive whole numbers, as 4096,512,256,64,8"
        )
    shape = Shape(*map(int, parts))
    if shape.K > shape.E:
        raise MoekitError(f"'{text}' asks for K={shape.K} of E={shape.E} experts; expected K <= E")
    return shape


def titled(name: str, shape: Shape) -> str:
    """A shape's name and sizes, once where the sizes are its name."""
    return str(shape) if name == ",".join(map(str, shape)) else f"{name}: {shape}"


def grown(name: str, shape: Shape, by: str) -> dict[str, Shape]:
    """A series that grows out of one shape: E from 8 to 256 at equal multiply-adds, or T from a sixteenth to all.

    Raises:
        MoekitError: K is more than any E of the series.
    """
    if by == "experts":
        if shape.K > GROWN[-1]:
            raise MoekitError(f"--growth experts: shape {name} asks for K={shape.K} of at most E={GROWN[-1]} experts")
        return {f"{name} E={E}": shape._replace(E=E) for E in GROWN if E >= shape.K}
    series = [shape.T >> i for i in (4, 3, 2, 1, 0)]
    return {f"{name} T={T}": shape._replace(T=T) for T in series if T}


def refuse_on_cpu(name: str, shape: Shape, element_size: int, memory: int | None = None) -> None:
    """Refuses a shape whose weights do not fit a machine's memory, or that would keep a CPU busy for minutes.

    Args:
        name: how the shape is called.
        shape: its sizes.
        element_size: bytes of one number.
        memory: bytes of the machine; its own when left out.

    Raises:
        MoekitError: with the way out.
    """
    held = memory or _memory()
    needed = 2 * 3 * shape.E * shape.D * shape.H * element_size  # weights and their gradients
    if needed > held // 2:
        raise MoekitError(
            f"shape {name} ({shape}) is too large for a CPU here: its weights and gradients alone take "
            f"{needed / 1e9:.1f} GB of {held / 1e9:.1f} GB\n  use --device cuda, or fewer or smaller experts: "
            f"--shape 256,{shape.D},{shape.H},{max(shape.K, shape.E // 32)},{shape.K}"
        )
    work = 3 * shape.T * shape.K * shape.D * shape.H
    if work > WORK_OF_A_CPU:
        raise MoekitError(
            f"shape {name} ({shape}) is too much work for a CPU: {work:.1e} multiply-adds in each forward pass\n"
            f"  use --device cuda, or fewer tokens: --tokens {_fewer(shape.T, WORK_OF_A_CPU / work)}"
        )


def refuse_to_move(name: str, shape: Shape, element_size: int, memory: int | None = None) -> None:
    """Refuses a shape whose token-expert pairs do not fit a machine's memory a few times over. Arguments as above.

    Raises:
        MoekitError: with the way out.
    """
    held = memory or _memory()
    needed = 4 * shape.T * shape.K * shape.D * element_size
    if needed > held // 2:
        raise MoekitError(
            f"shape {name} ({shape}) is too large for a CPU here: moving its tokens takes {needed / 1e9:.1f} GB of "
            f"{held / 1e9:.1f} GB\n  use --device cuda, or fewer tokens: --tokens {_fewer(shape.T, held / 2 / needed)}"
        )


def refuse_to_choose(name: str, shape: Shape, memory: int | None = None) -> None:
    """Refuses a shape whose tokens and scores, in fp32, do not fit a machine's memory a few times over.

    Raises:
        MoekitError: with the way out.
    """
    held = memory or _memory()
    needed = 4 * 4 * (shape.T + shape.E) * (shape.D + shape.E)
    if needed > held // 2:
        raise MoekitError(
            f"shape {name} ({shape}) is too large for a CPU here: its tokens and scores take {needed / 1e9:.1f} GB of "
            f"{held / 1e9:.1f} GB\n  use --device cuda, or fewer tokens: --tokens {_fewer(shape.T, held / 2 / needed)}"
        )


def _fewer(tokens: int, share: float) -> int:
    """The largest power of two that is at most this share of the tokens."""
    return 1 << (max(1, int(tokens * share)).bit_length() - 1)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
