"""Importing a folder of Hugging Face's as a run: its recipe, its weights as a checkpoint, its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moekit.errors import MoekitError, SaveError
from moekit.files import read_regular
from moekit.params import build_on_meta
from moekit.registry import build
from moekit.spec import load, to_plain
from moekit.spec.kinds import ModelSpec
from moekit.spec.recipe import Recipe
from moekit.training.run.imported import check_new, write_run
from moekit_hf.fields import FormatError
from moekit_hf.folder import CONFIG, KEPT, LARGEST_JSON, Folder, read_json
from moekit_hf.format import FormatSpec
from moekit_hf.matching import format_of, model_of
from moekit_hf.rules import Shape
from moekit_hf.weights import Table

MOST_TIMES = 100
"""A model of so many times the numbers in the files is none that lacks a few tensors."""

TRAINING: Mapping[str, Any] = {
    "objective": {"use": "causal_lm"},
    "optimizer": {"use": "adamw", "lr": 1e-5, "weight_decay": 0.1, "betas": [0.9, 0.95]},
    "schedule": {"use": "wsd", "warmup": 10, "decay": 0.2, "final": 0.1},
    "trainer": {"max_steps": 100, "gradient_clip_val": 1.0},
}
"""How an imported model is trained further, unless the user says otherwise."""


@dataclass(frozen=True)
class Found:
    """What a folder holds, checked.

    Attributes:
        folder: the folder.
        name: of the format.
        model: its spec.
        table: which tensor of theirs is which region of ours.
        ignored: tensors that are not needed, each with the reason.
        dtypes: of our tensors.
        balance_weight: of the balance loss that ``transformers`` trains this folder with, pooled over layers.
    """

    folder: Folder
    name: str
    model: ModelSpec
    table: Table
    ignored: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    balance_weight: float = 0.0


def inspect(path: Path) -> Found:
    """Reads and checks the configuration and the headers of the weights, and no weight.

    Raises:
        FormatError: the folder is damaged, or of no family that can be imported.
    """
    folder = Folder(path)
    name, family = format_of(folder.config)
    model = model_of(family, folder.config, str(path / CONFIG))
    theirs = folder.shapes()
    held = sum(map(math.prod, theirs.values()))
    ours: dict[str, Shape] = {name: tuple(each.shape) for name, each in build_on_meta(model).state_dict().items()}
    if (described := sum(map(math.prod, ours.values()))) > MOST_TIMES * held:  # it would take long to name all of them
        raise FormatError(
            f"{path}: {CONFIG} describes a model of {described:,} numbers, but the files hold {held:,}\n"
            "  expected the configuration of these weights"
        )
    node: Any = to_plain(model)
    table = Table(f"format '{name}'", family.rules(node), ours)
    ignored = table.check_names(theirs, family.ignored(node), str(path))
    dtypes = {name: _dtype(folder, table, name) for name in ours}
    return Found(folder, name, model, table, ignored, dtypes, _balance_weight(family, folder))


def _balance_weight(family: FormatSpec, folder: Folder) -> float:
    """The weight of the pooled balance loss; 0 where ``transformers`` computes none.

    Raises:
        FormatError: it is not a number.
    """
    weight = folder.config.get("router_aux_loss_coef", family.pooled_balance)
    if family.pooled_balance is None or not folder.config.get("output_router_logits"):
        return 0.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise FormatError(f"{folder.path / CONFIG}: router_aux_loss_coef={weight!r} is not a number of at least 0")
    return float(weight)


def _dtype(folder: Folder, table: Table, name: str) -> torch.dtype:
    """The one dtype of all tensors of theirs that make up one of ours."""
    of = {link.theirs: folder.dtype(link.theirs) for links in table.ours[name].values() for link in links}
    if len(set(of.values())) > 1:
        first = next(iter(of))
        other = next(name for name in of if of[name] != of[first])
        raise FormatError(f"{folder.path}: {first} is {of[first]}, but {other} is {of[other]}: one dtype is expected")
    return next(iter(of.values()))


def import_folder(path: Path, run: Path) -> Found:
    """Imports a folder as a new run, at step 0. One tensor of theirs, or one expert, is in memory at a time.

    Args:
        path: the folder.
        run: the run's folder, which must not exist yet; it counts as a run once everything is in it.

    Raises:
        FormatError: as in ``inspect``.
        MoekitError: the run exists.
        SaveError: the run could not be written.
    """
    check_new(run)
    found = inspect(path)
    recipe = recipe_of(found, run)
    meta = {
        name: torch.empty(shape, dtype=found.dtypes[name], device="meta") for name, shape in found.table.shapes.items()
    }
    try:
        write_run(
            run,
            recipe,
            meta,
            lambda name: found.table.pieces(name, found.folder.read),
            {} if recipe.data is None else build(recipe.data).state() or _tokens(path),
            kept_files(path),
        )
    except SaveError as error:
        if isinstance(error.__cause__, FormatError):  # the fault of the folder
            raise error.__cause__ from None
        raise
    return found


def recipe_of(found: Found, run: Path) -> Recipe:
    """The recipe of an imported model: it trains on from its own weights, on text that every installation has.

    Raises:
        FormatError: its tokenizer is damaged.
    """
    path = found.folder.path
    model: Any = to_plain(found.model)
    if "context" in model:
        model["context"] = context_of(found.folder.config)
    node = {
        **TRAINING,
        "name": path.resolve().name or "imported",
        "summary": f"{found.name} model imported from {path.resolve().name}",
        "model": model,
        "objective": {**TRAINING["objective"], "pooled_balance": found.balance_weight},
        "start": {"run": str(run.absolute())},
    }
    if _tokens(path) and found.model.takes == "tokens":  # pairs need sentinels, which are numbered otherwise here
        vocab: int = getattr(found.model, "vocab")  # noqa: B009  a model that takes tokens has one
        ends = {"end": end_token(found.folder), "stops": stops_of(found.folder)}
        tokenizer = {"use": "tokenizer_json", "vocab": vocab, **ends}
        try:
            build_tokenizer(tokenizer, path)
        except MoekitError as error:
            raise FormatError(f"{path / 'tokenizer.json'}: {error}") from error
        node["data"] = {"use": "local_text", "seq": 256, "batch": 4, "tokenizer": tokenizer}
    return load(node)


def build_tokenizer(node: Mapping[str, Any], path: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        DataError: its file is damaged, or does not fit the model.
    """
    from moekit.spec import component_spec

    tokenizer = build(component_spec("tokenizer", node))
    tokenizer.load_state(_tokens(path))
    return tokenizer


def end_token(folder: Folder) -> str:
    """The text of the token that ends a document: what ``tokenizer_config.json`` calls ``eos_token``; or none."""
    file = folder.path / "tokenizer_config.json"
    given = read_json(file).get("eos_token") if file.is_file() else None
    given = given.get("content") if isinstance(given, dict) else given
    return given if isinstance(given, str) else ""


def stops_of(folder: Folder) -> list[int]:
    """The tokens at which ``transformers`` ends a text: ``eos_token_id`` of ``generation_config.json``, or else of
    ``config.json``; one or several.

    Raises:
        FormatError: they are no numbers.
    """
    file = folder.path / "generation_config.json"
    given = read_json(file).get("eos_token_id") if file.is_file() else None
    given = folder.config.get("eos_token_id") if given is None else given
    stops = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in stops):
        raise FormatError(f"{folder.path}: eos_token_id={given!r} is not a token's number, or a list of them")
    return stops


def context_of(config: Mapping[str, Any]) -> int:
    """Tokens of the longest text that a model is for; 0, for any, if its configuration does not say.

    The rules ``linear``, ``dynamic`` and ``yarn`` stretch positions beyond those of the training, and folders state
    either number.
    """
    longest = config.get("max_position_embeddings")
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        return 0
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) not in ("linear", "dynamic", "yarn"):
        return longest
    return max(longest, int(rope["factor"] * (rope.get("original_max_position_embeddings") or longest)))


def kept_files(folder: Path) -> list[Path]:
    """The configuration, and the files of the tokenizer and of generation that are there."""
    return [folder / name for name in (CONFIG, *KEPT) if (folder / name).is_file()]


def _tokens(path: Path) -> dict[str, Any]:
    file = path / "tokenizer.json"
    if not file.exists():
        return {}
    try:
        return {"tokenizer_json": read_regular(file, LARGEST_JSON).decode()}
    except OSError as error:
        raise FormatError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{file} is not UTF-8 text: byte {error.start}") from error
