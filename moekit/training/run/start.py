"""Fine-tuning: starting from another run's weights.

Source: Zoph et al. 2022, ST-MoE (arXiv 2202.08906, section 4): training all but the experts and routers is about as
good as training everything; training only experts and routers fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from moekit.contracts import Data, Model, Weight
from moekit.errors import CheckpointError, Problem, SpecError
from moekit.parallel.launch import decide_on_rank_zero
from moekit.params import count_parameters
from moekit.registry import build
from moekit.shards import fill_shards, state_dict_shards
from moekit.spec.kinds import DataSpec, ModelSpec
from moekit.spec.recipe import Recipe, Start
from moekit.training.optim import first_few
from moekit.training.run.folder import RUNS, checkpoint_of
from moekit.training.run.saved import check_same_tokens, read_checkpoint

PREFIX = "model."  # of the model's tensors in a checkpoint of ``LitMoE``


def freeze(model: nn.Module, start: Start) -> None:
    """Clears ``requires_grad`` of the parameters that are not trained, also in a resumed run.

    The model's optimizer then skips them. Balancers stay active: their state is in buffers, not parameters.

    Raises:
        SpecError: ``train`` or ``freeze`` names a part that the model lacks, or nothing is left to train.
    """
    if not (start.train or start.freeze):
        return
    named = dict(model.named_parameters())
    _check_words("train", start.train, named, named)
    _check_words("freeze", start.freeze, named, named)
    for name, parameter in named.items():
        if (start.train and not _names_part(name, start.train)) or _names_part(name, start.freeze):
            parameter.requires_grad_(False)  # never set to True: a model may have fixed parameters
    if not any(parameter.requires_grad for parameter in named.values()):
        what = f"start: train {start.train} and freeze {start.freeze} leave no parameter to train"
        raise SpecError([Problem(what=what, at="start.freeze")])


def load_vocabulary(data: Data, spec: DataSpec | None, start: Start) -> None:
    """Loads the vocabulary that the weights were trained with into the data of a spec, before it is prepared.

    Raises:
        CheckpointError: no such run; or the spec states other tokens; the message has what fits.
        DataError: the vocabulary is damaged.
    """
    saved = read_checkpoint(checkpoint_of(start.run, RUNS))
    check_same_tokens(saved.path, saved.plain["hyper_parameters"]["spec"], spec, stated=True)
    if state := saved.plain["moekit"].get("data"):
        data.load_state(state)


def load_weights(model: nn.Module, spec: ModelSpec, start: Start) -> None:
    """Loads the weights into a new run's model of a spec; each rank loads its shards.

    Raises:
        CheckpointError: no such run; or its weights differ from the model's in name or shape.
        MoekitError: the converter cannot make them.
        SpecError: ``fresh`` names a part that the model lacks.
    """
    path = checkpoint_of(start.run, RUNS)
    saved = _weights(path) if start.convert is None else build(start.convert).convert(spec, path)
    every, fresh = state_dict_shards(model), start.fresh
    _check_words("fresh", fresh, every, [*every, *saved])
    source = {name: _held_as(name, saved) for name in every}
    # Balancers and adapters that the run lacks begin as in any new run; those that are removed must be named.
    new = [name for name in every if _names_part(name, ["balancers", "adapters"]) and source[name] not in saved]
    shards = {name: shard for name, shard in every.items() if not _names_part(name, fresh) and name not in new}
    there = {name: each for name, each in saved.items() if not _names_part(name, fresh)}
    check_weights_fit(path, there, {source[name]: shard.global_shape for name, shard in shards.items()})
    fill_shards(list(shards.values()), lambda name, offset, sizes: saved[source[name]].read(offset, sizes))


def _weights(path: Path) -> Mapping[str, Weight]:
    """The tensors of a checkpoint's model."""
    state = read_checkpoint(path).plain["state_dict"]
    return {name.removeprefix(PREFIX): each for name, each in state.items() if name.startswith(PREFIX)}


def _held_as(name: str, saved: Mapping[str, Weight]) -> str:
    """The name in a run of a tensor of the model: that of plain experts, for the base of adapted ones."""
    plain = ".".join(part for part in name.split(".") if part != "base")
    return plain if name not in saved and plain in saved else name


def describe(start: Start, model: Model | None) -> str:
    """Whose weights, and how many parameters of the model, if it is built, are trained, part by part."""
    text = f"the weights of {start.run}"
    if model is None or all(p.requires_grad for p in model.parameters()):
        return text
    count = count_parameters(model, frozen=True)
    said = [
        f"{part} {count.trained_parts[part]:,} of {total:,}"
        for part, total in count.parts.items()
        if total and part != "biases"
    ]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{text}; {trained:,} parameters are trained: {', '.join(said)}"


def _check_words(option: str, words: Sequence[str], every: Iterable[str], known: Iterable[str]) -> None:
    """Rejects words that name no part of any tensor."""
    known = list(known)
    if unknown := [word for word in words if not any(_names_part(name, [word]) for name in known)]:
        what = f"start.{option}: no tensor has '{unknown[0]}' in its name"
        parts = dict.fromkeys(part for name in every for part in name.split(".")[:-1] if not part.isdigit())
        raise SpecError([Problem(what=what, at=f"start.{option}", expected=", ".join(parts))])


def _names_part(name: str, words: Sequence[str]) -> bool:
    """Whether one of the words is a part of a tensor's name."""
    return any(word in name.split(".") for word in words)


def with_checkpoint_path(recipe: Recipe, start: Start, root: Path) -> Recipe:
    """The recipe with ``start.run`` replaced by a checkpoint's path, since a name's latest run changes over time.

    Raises:
        CheckpointError: no such run below ``root``.
    """
    path = decide_on_rank_zero("start_run", lambda: checkpoint_of(start.run, root).as_posix())
    return replace(recipe, start=replace(start, run=path))


def check_weights_fit(path: Path, saved: Mapping[str, Weight], model: Mapping[str, tuple[int, ...]]) -> None:
    """Rejects a checkpoint's tensors that differ from a model's shapes, by name: nothing is loaded partially.

    Raises:
        CheckpointError: naming the first tensors that are missing, unknown, or of another shape.
    """
    other = [name for name in model if name in saved and saved[name].shape != model[name]]
    parts = {
        "not in the checkpoint": [name for name in model if name not in saved],
        "not in the model": [name for name in saved if name not in model],
        "of another shape": [f"{n} {list(saved[n].shape)} there, {list(model[n])} here" for n in other],
    }
    lines = [f"  {what}: {first_few(names)}\n" for what, names in parts.items() if names]
    if lines:
        raise CheckpointError(
            f"cannot start from {path}: its weights are not those of this model\n{''.join(lines)}"
            "  give both recipes the same model (options without weights, such as dropout, may differ)"
        )
