"""Writes the table of families in ``docs/hugging_face.md``: how exact each is, and what else it refuses.

python docs/make_hugging_face.py    (needs transformers)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moekit.component import Component
from moekit.registry import current
from moekit_hf import FormatError, FormatSpec, peer
from moekit_hf.checks import compared
from moekit_hf.matching import model_of
from moekit_testing.cases import cases_of

PAGE = Path(__file__).with_name("hugging_face.md")
BEGIN, END = "<!-- written by docs/make_hugging_face.py -->\n", "<!-- end -->\n"

REFUSED: Mapping[str, Mapping[str, Any]] = {
    "deepseek-v2": {"norm_topk_prob": True, "attention_bias": True, "scoring_func": "sigmoid"},
    "deepseek-v3": {"attention_bias": True, "rope_interleave": False, "scoring_func": "softmax"},
    "dots1": {"use_sliding_window": True},
    "glm4-moe": {"scoring_func": "softmax"},
    "gpt-oss": {"layer_types": ["chunked_attention"] * 3},
    "llama": {},
    "llama4": {"num_experts_per_tok": 2},
    "minimax-m2": {"router_jitter_noise": 0.01, "scoring_func": "softmax"},
    "mistral": {},
    "mixtral": {"router_jitter_noise": 0.01},
    "olmo2": {},
    "olmoe": {"attention_bias": True},
    "phimoe": {"num_experts_per_tok": 3},
    "qwen2": {"use_sliding_window": True},
    "qwen2-moe": {"use_sliding_window": True},
    "qwen3": {"use_sliding_window": True},
    "qwen3-moe": {"use_sliding_window": True},
    "switch-transformers": {"dense_act_fn": "gelu", "router_dtype": "bfloat16"},
}
"""Fields, beyond those that every family refuses, that a family has and refuses; each is tried."""


def refused(name: str, family: FormatSpec) -> str:
    """The fields of ``REFUSED`` as text, after each was refused."""
    package = peer.transformers()
    described = package.AutoConfig.for_model(family.model_type, **family.tiny()[0])
    config: dict[str, Any] = json.loads(described.to_json_string())
    for field, value in REFUSED[name].items():
        try:
            model_of(family, {**config, field: value}, "config.json")
        except FormatError:
            continue
        raise AssertionError(f"{name} takes {field}={value}")
    return ", ".join(f"`{field}={json.dumps(value)}`" for field, value in REFUSED[name].items())


def row(component: Component) -> str:
    """A family's row: the worst of its tiny models."""
    (case,) = cases_of([component], {})
    family = case.spec_as(FormatSpec)
    found = list(compared(case))
    worst = {what: max(each[what][0] for _, each in found) for what in found[0][1]}
    mixture = any("experts" in field for config in family.tiny() for field in config)
    experts = ("differ" if worst["experts of a token"] else "equal") if mixture else "dense"
    cells = [
        f"`{component.name}`", component.summary, str(len(found)), f"{worst['logits']:.1e}", experts,
        f"{worst['gradients']:.1e}", refused(component.name, family),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Writes the table."""
    head = "| format | models | tiny models | logits | experts | gradients | also refuses |\n" + "|---" * 7 + "|\n"
    rows = "".join(row(component) for component in current().components("format"))
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + head + rows + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
