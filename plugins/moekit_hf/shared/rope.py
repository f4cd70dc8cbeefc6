"""Rotary positions: ``rope_parameters``, or the older ``rope_theta`` and ``rope_scaling``. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import Node


def _temperature(given: Fields, factor: float) -> float:
    """m of ``m ln s + 1``, by which queries and keys are each multiplied."""
    for name in ("mscale", "mscale_all_dim"):
        given.demand(name, None, "it is known in DeepSeek's families alone")
    attention = given.take("attention_factor", None)
    return 0.1 if attention is None else round((float(attention) - 1) / math.log(factor), 12)


def mla_temperature(given: Fields, factor: float) -> float:
    """The same from ``mscale_all_dim``; ``mscale`` would multiply the rotary part alone, and equals it everywhere."""
    given.demand("attention_factor", None, "mscale and mscale_all_dim say it in this family")
    both = given.take("mscale_all_dim")
    given.demand("mscale", both, "the rotary part alone would have another scale")
    return round(0.1 * float(both), 12)


def rope_options(
    fields: Fields, theta: float = 10000.0, temperature: Callable[[Fields, float], float] = _temperature
) -> Node:
    """``rope_theta`` and ``yarn``, from ``rope_parameters`` or the older ``rope_theta`` and ``rope_scaling``.

    ``llama3`` is YaRN whose ramp is ``turns`` and whose scores keep their scale. ``temperature`` reads YaRN's m.

    Raises:
        FormatError: the angles are scaled in another way.
    """
    given, base = _rope(fields, theta)
    kind = "default" if given is None else given.take("rope_type", given.take("type", "default"))
    if given is not None:
        given.take("partial_rotary_factor", None)  # read by the attention, of whose heads it is a share
    if given is None or kind == "default":
        if given is not None:
            given.refuse_unread()
        return {"rope_theta": base}
    factor = float(given.take("factor"))
    original = given.take("original_max_position_embeddings", fields.take("max_position_embeddings", 0))
    yarn: Node = {"factor": factor, "original": original}
    if kind == "yarn":
        yarn |= {"beta_fast": float(given.take("beta_fast", 32)), "beta_slow": float(given.take("beta_slow", 1))}
        yarn |= {"mscale": temperature(given, factor), "truncate": given.take("truncate", True)}
    elif kind == "llama3":
        slow, fast = given.take("low_freq_factor"), given.take("high_freq_factor")
        yarn |= {"beta_slow": float(slow), "beta_fast": float(fast), "mscale": 0.0, "ramp": "turns"}
    else:
        raise FormatError(f"{given.where}: rope_type={kind!r} is not known; expected default, yarn or llama3")
    given.refuse_unread()
    return {"rope_theta": base, "yarn": yarn}


def _rope(fields: Fields, theta: float) -> tuple[Fields | None, float]:
    given = fields.nested("rope_parameters") or fields.nested("rope_scaling")
    base = fields.take("rope_theta", theta)
    return given, float(base if given is None else given.take("rope_theta", base))


def rope_fields(attention: Node) -> dict[str, Any]:
    """The same as fields."""
    yarn, rope = attention["yarn"], {"rope_type": "default", "rope_theta": attention["rope_theta"]}
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
