"""Finding the family of a configuration, and the family that can express a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from moekit.errors import MoekitError, SpecError
from moekit.registry import current
from moekit.spec import component_spec, to_plain
from moekit.spec.kinds import ModelSpec
from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import FormatSpec, Node
from moekit_hf.shared import indices

OMITTED = ("mtp.",)
"""Prefixes of our tensors that no family has a place for: multi-token prediction serves training alone."""

TRAINING = (
    *("init_std", "init_scale", "recompute", "mtp", "dropout", "embedding_std", "input_jitter", "send_threshold"),
    "context",
)
"""Options that change no output of a trained model in evaluation."""


def formats() -> dict[str, FormatSpec]:
    """The formats of all plugins by name.

    Raises:
        PluginError: one cannot be imported.
    """
    found = current()
    return {found.short_name(each): each.spec_class() for each in found.components("format")}


def format_of(config: Mapping[str, Any]) -> tuple[str, FormatSpec]:
    """The format of a configuration, with its name.

    Raises:
        FormatError: no format is for it, or two are.
    """
    every = formats()
    fits = [name for name, each in every.items() if each.matches(config)]
    if len(fits) != 1:
        given = config.get("model_type")
        known = ", ".join(sorted(each.model_type for each in every.values()))
        why = "no format is for it" if not fits else f"formats {', '.join(fits)} are for it"
        raise FormatError(f"config.json: model_type={given!r}: {why}\n  known: {known}\n  list them: moekit ls formats")
    return fits[0], every[fits[0]]


def model_of(family: FormatSpec, config: Mapping[str, Any], where: str) -> ModelSpec:
    """The model that a configuration describes.

    Raises:
        FormatError: a field is missing, unknown, or of a value that cannot be expressed.
    """
    fields = Fields(config, where)
    node = family.spec(fields)
    fields.refuse_unread()
    try:
        return cast(ModelSpec, component_spec("model", node))
    except SpecError as error:
        raise FormatError(f"{where} describes no model of ours\n  {error}") from error


def format_for(model: ModelSpec, wanted: str = "") -> tuple[str, FormatSpec]:
    """The format that can express a model: what it writes describes the same model again.

    Args:
        model: the model.
        wanted: the name of the one format to try; default: all.

    Raises:
        FormatError: none can; says how the nearest one differs.
        UnknownName: there is no format of that name.
    """
    every = formats()
    if wanted:
        current().get("format", wanted)
    names = [wanted] if wanted else list(every)
    misfits = {}
    for name in names:
        misfits[name] = misfit(every[name], model)
        if not misfits[name]:
            return name, every[name]
    near = min(names, key=lambda name: len(misfits[name]))
    differ = "".join(f"\n  {line}" for line in misfits[near][:5])
    raise FormatError(f"no format of {', '.join(names)} can express this model; '{near}' differs in:{differ}")


def misfit(family: FormatSpec, model: ModelSpec) -> list[str]:
    """What a format cannot say of a model, as lines; empty if it can say everything."""
    node: Any = to_plain(model)
    try:
        config = {**family.config(node), "model_type": family.model_type}
        again = to_plain(model_of(family, config, "its config.json"))
    except (MoekitError, KeyError, TypeError, ValueError) as error:
        return [" ".join(f"{type(error).__name__}: {error}".split())] * 99  # far from fitting
    return differences(node, again)


def differences(one: Node, other: Node) -> list[str]:
    """The options that differ between two models and change what a trained model computes, as lines."""
    here, there = dict(_options(_function(one))), dict(_options(_function(other)))
    return [
        f"{path}: {here.get(path)} here, {there.get(path)} there"
        for path in dict.fromkeys([*here, *there])
        if here.get(path) != there.get(path)
    ]


def _function(node: Any) -> Any:
    """A node without what changes no output: options of training, the widths of a dense layer that there is not."""
    if isinstance(node, list):
        return [_function(each) for each in node]
    if not isinstance(node, dict):
        return node
    out = {key: _function(value) for key, value in node.items() if key not in TRAINING}
    if "balancers" in out:
        biased = [name for name, each in node["balancers"].items() if _gives_bias(each)]
        out["balancers"] = dict.fromkeys(biased, "a selection bias")
    if "dispatcher" in out and not _drops(node["dispatcher"]):
        del out["dispatcher"]
    moe = out.get("moe")
    if isinstance(moe, dict) and "at" in moe:
        out["moe"] = {**moe, "at": indices(moe["at"], out["depth"])}
        if "decoder_depth" in out:
            out["decoder_depth"] = out["decoder_depth"] or out["depth"]
            out["moe"]["decoder_at"] = indices(moe["decoder_at"] or moe["at"], out["decoder_depth"])
        elif len(out["moe"]["at"]) == out["depth"]:
            out.pop("ffn")
    if isinstance(other := out.get("other_attention"), dict):
        out["other_attention"] = {**other, "at": indices(other["at"], out["depth"])}
    return out


def _drops(dispatcher: Any) -> bool:
    """Whether a dispatcher, or one that it holds, may leave pairs out."""
    if not isinstance(dispatcher, dict):
        return False
    use = dispatcher.get("use")
    own = use is not None and not current().get("dispatcher", use).spec_class.dropless
    return own or any(_drops(each) for each in dispatcher.values())


def _gives_bias(balancer: Node) -> bool:
    return bool(current().get("balancer", balancer["use"]).spec_class.gives_bias)


def _options(node: Any, path: str = "model") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        yield from _options(value, f"{path}.{key}")
