"""The metrics of a trained model by domain, on the run's validation set or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.contracts import Batch, Data, LossSum, Model, ModelOutput, Objective, Source
from moekit.contracts.run import NOT_LEARNT
from moekit.errors import MoekitError
from moekit.registry import build
from moekit.run import Run
from moekit.spec import load
from moekit.spec.recipe import Recipe
from moekit.training.metrics import loss_sums
from moekit.training.run.start import load_vocabulary

ALL = "all"
HIDDEN = "objective"
"""The sum that is minimised; ``loss`` is what is reported."""


@dataclass(frozen=True, kw_only=True)
class DomainScore:
    """The metrics of one domain.

    Attributes:
        domain: its name, or ``all``.
        sequences: how many were read.
        tokens: valid targets.
        values: metrics by name, such as ``loss`` and ``bits_per_byte``.
    """

    domain: str
    sequences: int
    tokens: int
    values: dict[str, float]


@torch.no_grad()
def score_by_domain(model: Model, objective: Objective, data: Data) -> list[DomainScore]:
    """Scores each domain of a validation set, and all together as training's validation does.

    A batch runs through the model once, whole: a router with a capacity drops what it drops in training. Each domain's
    part of the output is then scored alone.

    Args:
        model: in evaluation mode.
        objective: of its recipe.
        data: prepared.

    Raises:
        MoekitError: the validation set is empty.
    """
    names = data.domain_names()
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in (*names, ALL)}
    sequences = dict.fromkeys(sums, 0)
    for batch in data.validation_batches():
        output = model.on(batch)
        _add(sums[ALL], objective(output, batch))
        sequences[ALL] += len(batch.inputs)
        if batch.domain is None:
            continue
        for number in sorted(set(batch.domain.tolist())):
            rows = (batch.domain == number).nonzero().flatten()
            part = ModelOutput(y=output.y[rows])
            _add(sums[names[number]], objective(part, rows_of(batch, rows, data)))
            sequences[names[number]] += len(rows)
    if not sequences[ALL]:
        raise MoekitError("the validation set is empty: there is nothing to score")
    return [
        DomainScore(
            domain=name,
            sequences=sequences[name],
            tokens=int(found["loss"][1]),
            values={key: float(total / count) for key, (total, count) in found.items() if key != HIDDEN},
        )
        for name, found in sums.items()
        if found
    ]


def _add(sums: dict[str, Tensor], loss: LossSum) -> None:
    for name, (total, count) in loss_sums(loss).items():
        pair = torch.stack([total.double(), count.double()])
        sums[name] = sums[name] + pair if name in sums else pair


def rows_of(batch: Batch, rows: Tensor, data: Data) -> Batch:
    """Some sequences of a batch.

    Args:
        batch: of text.
        rows: which, int64.
        data: whose tokenizer counts the bytes.
    """
    targets, valid = batch.targets[rows], None if batch.valid is None else batch.valid[rows]
    num_bytes, num_bytes_V = None, None if data.tokenizer is None else data.tokenizer.num_bytes_V()
    if batch.num_bytes is not None and num_bytes_V is not None:
        bytes_BS = num_bytes_V[targets.clamp(min=0)] * (targets != NOT_LEARNT)
        num_bytes = (bytes_BS if valid is None else bytes_BS * valid).sum()
    source = batch.source and Source(batch.source.tokens[rows], _rows(batch.source.valid, rows))
    return Batch(
        batch.inputs[rows], targets, valid, num_bytes, _rows(batch.domain, rows), _rows(batch.document, rows), source
    )


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def score(run: Run, overrides: Sequence[str] = ()) -> tuple[list[DomainScore], Recipe]:
    """Scores a run's model, on its own data or with other options of the data.

    Args:
        run: with a checkpoint.
        overrides: ``data.option=value``; ``data.use=...`` takes another kind of data.

    Returns:
        The scores, and the recipe with the overrides.

    Raises:
        MoekitError: there is no data or checkpoint, or an override is not of the data.
    """
    data, recipe = data_of(run, overrides)
    return score_by_domain(run.module.model, run.module.objective, data), recipe


def data_of(run: Run, overrides: Sequence[str] = ()) -> tuple[Data, Recipe]:
    """The data of a run, or other data with the vocabulary that the model was trained with; prepared.

    Args:
        run: with a checkpoint.
        overrides: ``data.option=value``; ``data.use=...`` takes another kind of data.

    Returns:
        The data, and the recipe with the overrides.

    Raises:
        MoekitError: there is no data or checkpoint, or an override is not of the data, or makes tokens of another kind.
    """
    if strays := [text for text in overrides if not text.startswith(("data.", "data="))]:
        raise MoekitError(
            f"'{strays[0]}' changes more than the data\n  expected data.option=value: the model is trained"
        )
    weights = {"start": {"run": run.path.as_posix()}, "compare": None}  # so that other data keeps their tokenizer
    recipe, own = load([run.path / "spec.yaml", weights], overrides), run.module.data
    if recipe.data is None:
        raise MoekitError(
            f"'{run.path.as_posix()}' has no data\n  expected data.use=text_files data.path=FOLDER, a folder of texts"
        )
    data = own
    if data is None or overrides:
        data = build(recipe.data)
        assert recipe.start is not None
        load_vocabulary(data, recipe.data, recipe.start)
    data.prepare()
    return data, recipe
