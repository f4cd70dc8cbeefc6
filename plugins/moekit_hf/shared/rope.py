"""Rotary positions: ``rope_parameters``, or the older ``rope_theta`` and ``rope_scaling``. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import Node

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def _temperature(given: Fields, factor: float) -> float:
    """m of ``m ln s + 1``, by which queries and keys are each multiplied."""
    for name in ("mscale", "mscale_all_dim"):
        given.demand(name, None, "it is known in DeepSeek's families alone")
    if given.take("attention_factor", None) is None:
        return 0.1
    if factor <= 1:
        raise FormatError(
            f"{given.where}: factor={factor!r} scales nothing, and attention_factor is for what is scaled"
        )
    return round((given.real("attention_factor") - 1) / math.log(factor), 12)


def mla_temperature(given: Fields, factor: float) -> float:
    """The same from ``mscale_all_dim``; ``mscale`` would multiply the rotary part alone, and equals it everywhere.

    Raises:
        FormatError: it is 0, or ``mscale`` differs.
    """
    given.demand("attention_factor", None, "mscale and mscale_all_dim say it in this family")
    both = given.real("mscale_all_dim")
    if not both:  # transformers then scales the rotary part alone, as if both were missing
        raise FormatError(f"{given.where}: mscale_all_dim={both:g} is not read here; expected a number above 0")
    given.demand("mscale", both, "the rotary part alone would have another scale")
    return round(0.1 * both, 12)


def rope_options(
    fields: Fields,
    theta: float = 10000.0,
    temperature: Callable[[Fields, float], float] = _temperature,
    *,
    partial: bool = False,
    scales: bool = False,
) -> Node:
    """``rope_theta``, and ``yarn``, ``stretch`` or ``long_rope``.

    They are read from ``rope_parameters``, or from the older ``rope_theta`` and ``rope_scaling``.
    ``llama3`` is YaRN whose ramp is ``turns`` and whose scores keep their scale. ``temperature`` reads YaRN's m.
    ``partial``: the family rotates a part of each head if ``partial_rotary_factor`` says so, which the attention reads.
    ``scales``: ``longrope`` has ``short_mscale`` and ``long_mscale`` (Phi-3.5-MoE).

    Raises:
        FormatError: the angles are scaled in another way, or a part of each head is rotated where none can be.
    """
    given, base = rope_group(fields), fields.real("rope_theta", theta)
    base = base if given is None else given.real("rope_theta", base)
    kind = "default" if given is None else given.take("rope_type", given.take("type", "default"))
    for each in filter(None, (fields, given)):
        if partial:
            each.take("partial_rotary_factor", None)
        else:
            each.demand("partial_rotary_factor", 1.0, "transformers rotates all of each head here", default=1.0)
    if given is None or kind == "default":
        if given is not None:
            given.refuse_unread()
        return {"rope_theta": base}
    if kind == "longrope":
        return {"rope_theta": base, "long_rope": _long_rope(fields, given, scales)}
    factor = given.real("factor")
    if kind in ("linear", "dynamic"):
        stretch: Node = {"rule": kind, "factor": factor}
        stretch |= {} if kind == "linear" else {"original": fields.number("max_position_embeddings")}
        given.refuse_unread()
        return {"rope_theta": base, "stretch": stretch}
    original = given.take("original_max_position_embeddings", fields.take("max_position_embeddings", 0))
    yarn: Node = {"factor": factor, "original": original}
    if kind == "yarn":
        yarn |= {"beta_fast": given.real("beta_fast", 32), "beta_slow": given.real("beta_slow", 1)}
        yarn |= {"mscale": temperature(given, factor), "truncate": given.take("truncate", True)}
        least = 2 * math.pi * yarn["beta_slow"]
        if given.real("original_max_position_embeddings", original) < least:  # the ramp of transformers then falls
            raise FormatError(
                f"{given.where}: original_max_position_embeddings={original} is too short for YaRN\n"
                f"  expected at least {math.ceil(least)}, in which an angle turns beta_slow times"
            )
    elif kind == "llama3":
        slow, fast = given.real("low_freq_factor"), given.real("high_freq_factor")
        yarn |= {"beta_slow": slow, "beta_fast": fast, "mscale": 0.0, "ramp": "turns"}
    else:
        raise FormatError(f"{given.where}: rope_type={kind!r} is not known; expected one of {', '.join(KINDS)}")
    given.refuse_unread()
    return {"rope_theta": base, "yarn": yarn}


def _long_rope(fields: Fields, given: Fields, scales: bool) -> Node:
    """``sqrt(1 + ln s / ln L)`` scales queries and keys by default; s is the longest context over the original one."""
    inside = given.take("original_max_position_embeddings", fields.config.get("max_position_embeddings"))
    original = fields.number("original_max_position_embeddings", inside, least=2)
    factor = given.take("factor", None)
    if given.take("attention_factor", None) is not None:
        scale = given.real("attention_factor")
    else:
        s = fields.number("max_position_embeddings") / original if factor is None else given.real("factor")
        scale = math.sqrt(1 + math.log(s) / math.log(original)) if s > 1 else 1.0
    lists = {"short": given.take("short_factor"), "long": given.take("long_factor")}
    options = {**lists, "original": original, "short_scale": scale}
    if scales:
        options |= {"short_scale": given.take("short_mscale"), "long_scale": given.take("long_mscale")}
    given.refuse_unread()
    return options


def rope_group(fields: Fields) -> Fields | None:
    """``rope_scaling``, or ``rope_parameters`` if that is empty, as ``transformers`` chooses; None without both."""
    older, newer = fields.nested("rope_scaling"), fields.nested("rope_parameters")
    return older if older is not None and older.config else newer


def rope_fields(attention: Node) -> dict[str, Any]:
    """The same as fields."""
    yarn, rope = attention["yarn"], {"rope_type": "default", "rope_theta": attention["rope_theta"]}
    if (stretch := attention.get("stretch")) is not None:
        rope |= {"rope_type": stretch["rule"], "factor": stretch["factor"]}
        longest = {} if stretch["original"] is None else {"max_position_embeddings": stretch["original"]}
        return {"rope_parameters": rope, **longest}
    if (long := attention.get("long_rope")) is not None:
        rope |= {"rope_type": "longrope", "short_factor": long["short"], "long_factor": long["long"]}
        rope |= {"original_max_position_embeddings": long["original"], "attention_factor": long["short_scale"]}
        if long["long_scale"] is not None:
            rope |= {"short_mscale": long["short_scale"], "long_mscale": long["long_scale"]}
        return {"rope_parameters": rope}
    if yarn is None:
        return {"rope_parameters": rope}
    rope |= {"factor": yarn["factor"], "original_max_position_embeddings": yarn["original"]}
    if yarn["ramp"] == "turns":
        rope |= {"rope_type": "llama3", "low_freq_factor": yarn["beta_slow"], "high_freq_factor": yarn["beta_fast"]}
    else:
        rope |= {"rope_type": "yarn", "beta_fast": yarn["beta_fast"], "beta_slow": yarn["beta_slow"]}
        rope |= {} if yarn["truncate"] else {"truncate": False}
        rope |= {} if yarn["mscale"] == 0.1 else {"attention_factor": yarn["mscale"] * math.log(yarn["factor"]) + 1}
    return {"rope_parameters": rope}
