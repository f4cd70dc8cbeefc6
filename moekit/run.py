"""``moekit.train`` and ``moekit.open``: a run from Python, and what is in its folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from moekit.contracts import Data, Model, Tokenizer
from moekit.errors import MoekitError
from moekit.inference.generate import DEFAULT_CONTEXT, answer, load_run, sample, stream
from moekit.inference.sampling import check_sampling
from moekit.screen import Screen
from moekit.spec import load
from moekit.spec.fields import Spec
from moekit.spec.loading import Source
from moekit.spec.recipe import Recipe
from moekit.tables import Table, read_tables
from moekit.training.module import LitMoE
from moekit.training.run import train as training
from moekit.training.run.folder import RUNS, RunFolder
from moekit.training.run.metrics_log import read_metrics
from moekit.training.run.outcome import read_summary
from moekit.training.run.prepare import quiet as quietly

Part = str | Mapping[str, Any] | DictConfig | Spec
"""A component: its name, a mapping or config with ``use``, or its spec."""


class Run:
    """A run, finished or not. Everything is read when it is first used.

    Attributes:
        path: its folder.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe | None = None) -> None:
        self.path = folder.path
        self._folder = folder
        self._recipe = recipe

    def __repr__(self) -> str:
        return f"moekit.open({self.path.as_posix()!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe.

        Raises:
            SpecError: a plugin that it needs is missing.
        """
        return self._recipe or load(self._folder.spec)

    @cached_property
    def module(self) -> LitMoE:
        """The trained ``LitMoE``, in evaluation mode on the CPU.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged.
        """
        chosen = self._folder.chosen
        with quietly():
            return load_run(os.fspath(self._folder.path if chosen is None else chosen))

    @property
    def model(self) -> Model:
        """The trained model."""
        return self.module.model

    @property
    def data(self) -> Data | None:
        """The data, not read yet; None for a recipe without data."""
        return self.module.data

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The trained tokenizer; None for data that is not text."""
        return None if self.module.data is None else self.module.data.tokenizer

    @cached_property
    def metrics(self) -> dict[str, list[float | None]]:
        """The columns of ``metrics.csv`` by name, ``step`` among them; None where a metric was not logged.

        Damaged rows are omitted; without a file there are no columns.
        """
        rows = read_metrics(self._folder.metrics)
        names = dict.fromkeys(name for row in rows.values() for name in row)
        columns = {name: [row.get(name) for row in rows.values()] for name in names}
        return {"step": [float(step) for step in rows], **columns} if rows else {}

    @property
    def routing(self) -> dict[str, Table]:
        """The routing statistics of the run so far: tables of columns, as in ``docs/seeing_experts.md``.

        Raises:
            MoekitError: a file of them is damaged.
        """
        return read_tables(self._folder.routing)

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """The results in ``summary.json``; empty until the run has ended.

        Raises:
            MoekitError: the file is damaged.
        """
        return read_summary(self._folder.summary) if self.is_complete else {}

    @property
    def is_complete(self) -> bool:
        """Whether it has written its results."""
        return self._folder.summary.is_file()

    @property
    def dense(self) -> Run | None:
        """The dense baseline that was trained with it; None without one."""
        dense = self._folder.dense
        return Run(dense) if dense.spec.is_file() else None

    def stream(
        self,
        prompt: str,
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        cached: bool | None = None,
        context: int | None = None,
    ) -> Iterator[str]:
        """Generated text, piece by piece: the continuation of a prompt, or the target of a source.

        Args:
            prompt: at least one character.
            tokens: how many to generate at most.
            temperature: divides the logits; 0 takes the most likely token.
            top_p: samples from the fewest tokens whose probabilities sum to at least this.
            seed: of sampling.
            cached: whether to use a cache (default: yes, unless experts have a capacity).
            context: how many of the last tokens are read at most; 0: all (default: the model's ``context``, or as many
                as in training). A line on stderr says so if the prompt has more.

        Raises:
            MoekitError: an option is out of range, the prompt is empty, or the model is not a language model.
        """
        check_sampling(prompt=prompt, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, context=context)
        module, tokenizer = self.module, self.tokenizer
        if module.recipe.model.gives != "next_token" or tokenizer is None:
            raise MoekitError(f"'{self.path.as_posix()}' is not a language model: it cannot generate text")
        ids = torch.cat([torch.tensor(tokenizer.begin, dtype=torch.int64), tokenizer.encode(prompt)])
        generator = torch.Generator().manual_seed(seed)
        new: Iterator[int]
        if module.recipe.model.takes == "pairs":
            if context is not None:
                raise MoekitError(f"context={context}: a source is read whole; remove it")
            new = answer(
                module.model, tokenizer, ids, tokens=tokens, temperature=temperature, top_p=top_p, cached=cached,
                generator=generator,
            )  # fmt: skip
        else:
            most = self._context(context)
            if len(ids) > most:
                read = f"of the prompt's {len(ids):,} tokens the model reads the last {most:,}"
                print(f"note: {read}; for more: context=N, or --context N", file=sys.stderr)
            new = sample(
                module.model, ids, tokens=tokens, temperature=temperature, top_p=top_p, cached=cached, context=most,
                generator=generator,
            )  # fmt: skip
            stops = frozenset(tokenizer.stops)
            new = takewhile(lambda token: token not in stops, new)
        return stream(tokenizer, new)

    def _context(self, requested: int | None) -> int:
        """How many tokens the model reads: as many as requested, or as it says itself, or as in training."""
        most = getattr(self.recipe.model, "context", None) if requested is None else requested
        return int(getattr(self.recipe.data, "seq", DEFAULT_CONTEXT)) if most is None else most or sys.maxsize

    def generate(
        self,
        prompt: str,
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        context: int | None = None,
    ) -> str:
        """The same as one text, without the prompt.

        Raises:
            MoekitError: as in ``stream``.
        """
        new = self.stream(prompt, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, context=context)
        return "".join(new)


def open(run: str | os.PathLike[str], *, out: str | os.PathLike[str] = RUNS) -> Run:
    """The run of a folder, of a checkpoint in one, or of a name (its latest run).

    Args:
        run: a run folder, a checkpoint, or the name of runs below ``out``.
        out: folder of all runs.

    Raises:
        CheckpointError: there is no such run.

    Example:
        ``moekit.open("runs/deepseek_v3/…").generate("def ")``
    """
    return Run(RunFolder.find(os.fspath(run), Path(out)))


def train(
    recipe: Source | None = None,
    overrides: Iterable[str] = (),
    *,
    out: str | os.PathLike[str] = RUNS,
    name: str | None = None,
    resume: str | os.PathLike[str] | Run | None = None,
    callbacks: Mapping[str, Part | Callback | None] | Sequence[Callback] = (),
    logger: Mapping[str, Part | Logger | None] | Sequence[Logger] = (),
    compare: bool = True,
    allow_changes: bool = False,
    quiet: bool = False,
) -> Run:
    """Trains a recipe into a new run folder, or resumes a run: what ``moekit train`` does.

    Args:
        recipe: what ``moekit.load`` takes; None if a run is resumed.
        overrides: ``path.to.option=value``.
        out: folder of all runs.
        name: of the run's folder (default: the recipe's name).
        resume: a run, its folder, its name, or one of its checkpoints.
        callbacks: by name, as below ``trainer.callbacks`` of a recipe (None deletes one); or Lightning callbacks. Those
            given as objects are not in the recipe: give them again to resume.
        logger: the same below ``trainer.logger``, or Lightning loggers.
        compare: whether the dense baseline is trained too, if the recipe has ``compare``.
        allow_changes: resume although the data, its options, the seed or the precision have changed.
        quiet: print nothing.

    Raises:
        MoekitError: a mistake in the recipe, the data or the arguments; nothing has been written. Or training failed.

    Example:
        ``moekit.train("deepseek_v3", ["trainer.max_steps=100"], callbacks={"ema": {"use": "ema", "decay": 0.99}})``
    """
    if (recipe is None) == (resume is None):
        raise MoekitError("train takes a recipe, or resume=RUN; the resumed run has its own recipe")
    if resume is not None and name is not None:
        raise MoekitError(f"a resumed run keeps its folder: it takes no name={name!r}")
    folder = None
    if resume is not None:
        folder = resume._folder if isinstance(resume, Run) else RunFolder.find(os.fspath(resume), Path(out))
    parts, objects = _split(callbacks)
    logger_parts, loggers = _split(logger)
    given = {key: each for key, each in (("callbacks", parts), ("logger", logger_parts)) if each}
    source: Any = recipe if folder is None else folder.spec
    sources = [*(source if isinstance(source, list | tuple) else [source]), *([{"trainer": given}] if given else [])]
    overrides = [*([overrides] if isinstance(overrides, str) else overrides), *([] if compare else ["compare=null"])]
    spec = load(sources if len(sources) > 1 else source, overrides)
    chosen: list[RunFolder] = []
    training.train(
        spec,
        root=Path(out),
        name=name,
        resume=folder,
        allow_changes=allow_changes,
        console=Screen(quiet=True) if quiet else None,
        callbacks=objects,
        loggers=loggers,
        started=chosen.append,
    )
    return Run(RunFolder(chosen[0].path))


def _split(given: Mapping[str, Any] | Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
    """Parts by name, and Lightning's own objects."""
    if not isinstance(given, Mapping):
        return {}, list(given)
    objects = {name: each for name, each in given.items() if isinstance(each, Callback | Logger)}
    return {name: each for name, each in given.items() if name not in objects}, list(objects.values())
