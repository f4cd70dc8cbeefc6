"""The callbacks, loggers and strategy of a recipe's ``trainer``: checking classes named by import path, and building.

Whatever is wrong with them is found before anything is written.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    Checkpoint,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    StochasticWeightAveraging,
)

from moekit.checkpoints.format import Encoded
from moekit.component import imported
from moekit.errors import CheckpointError, MoekitError, Problem, SpecError, nearest
from moekit.registry import current
from moekit.spec.fields import FieldInfo, Spec, is_plain
from moekit.spec.kinds import Imported
from moekit.spec.loading import Values
from moekit.spec.recipe import Recipe
from moekit.spec.tree import Keys, Report, show

HERE: Keys = ("trainer",)

REFUSED: Mapping[type[Callback], str] = {
    Checkpoint: "moekit saves checkpoints itself, from which a run resumes exactly; say checkpoints: {keep: 3}",
    GradientAccumulationScheduler: "the micro-batches of a step are fixed; say trainer.accumulate_grad_batches",
    BatchSizeFinder: "it would change the recipe that the run folder holds; set data.batch",
    LearningRateFinder: "it would change the recipe that the run folder holds; set optimizer.lr",
    StochasticWeightAveraging: "it counts epochs, of which a run has none; see: moekit ls callbacks",
}
"""Callbacks of Lightning that cannot work in a run, and why."""


def parts_of(recipe: Recipe) -> Iterator[tuple[Keys, str, Spec]]:
    """The path, kind and spec of every part of the trainer."""
    trainer = recipe.trainer
    if trainer.strategy is not None:
        yield (*HERE, "strategy"), "strategy", trainer.strategy
    for name, callback in trainer.callbacks.items():
        yield (*HERE, "callbacks", name), "callback", callback
    for name, logger in trainer.logger.items():
        yield (*HERE, "logger", name), "logger", logger


def check_parts(recipe: Recipe) -> None:
    """Imports the classes that a recipe names by ``class``, and checks their arguments against their signatures.

    Raises:
        SpecError: with every mistake.
    """
    report = Report()
    for path, kind, spec in parts_of(recipe):
        if isinstance(spec, Imported):
            _check(spec, kind, path, report)
    report.raise_if_any()


def _check(spec: Imported, kind: str, path: Keys, report: Report) -> None:
    here = (*path, "class")
    base = _base(kind)
    module, _, name = spec.path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except AttributeError:
        near = nearest(name, dir(importlib.import_module(module)))
        report.add(here, f"module '{module}' has no '{name}'", nearest=f"{module}.{near}" if near else "")
        return
    except (Exception, SystemExit) as error:
        report.add(here, f"cannot import '{spec.path}': {type(error).__name__}: {error}")
        return
    expected = f"a subclass of {base.__module__}.{base.__qualname__}"
    if not (isinstance(cls, type) and issubclass(cls, base)):
        report.add(here, f"'{spec.path}' is not a {kind}", expected=expected)
    elif inspect.isabstract(cls):
        report.add(here, f"'{spec.path}' is abstract", expected=f"{expected} that can be made")
    elif why := refusal(cls):
        report.add(here, f"{name} has no place in a run: {why}")
    else:
        _check_arguments(cls, spec, path, report)


def refusal(cls: type) -> str:
    """Why a callback of this class cannot work in a run; empty if it can."""
    return next((why for refused, why in REFUSED.items() if issubclass(cls, refused)), "")


def _check_arguments(cls: type, spec: Imported, path: Keys, report: Report) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    hints = _hints(cls)
    values = Values(report)
    for name, value in spec.arguments.items():
        if name not in named and not takes_any:
            expected = f"one of {', '.join(named)}" if named else "no argument"
            report.add(
                (*path, name), f"{spec.name} takes no '{name}'", expected=expected, nearest=nearest(name, list(named))
            )
        elif is_plain(hints.get(name)) and name in hints:
            values.read(value, FieldInfo("option", "", type=hints[name]), (*path, name))
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in spec.arguments:
            report.add((*path, name), f"{spec.name} needs '{name}'")


def _hints(cls: type) -> dict[str, Any]:
    """The types of the arguments; none where they cannot be read."""
    try:
        return typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except Exception:  # of another library: names that only type checkers import
        return {}


def _converted(cls: type, spec: Imported) -> dict[str, Any]:
    """The arguments, which are valid: those with a plain type converted to it."""
    hints, values = _hints(cls), Values(Report())
    return {
        name: values.convert(value, hints[name], (name,)) if name in hints and is_plain(hints[name]) else value
        for name, value in spec.arguments.items()
    }


def build_parts(recipe: Recipe, kind: str, *context: Any) -> dict[str, Any]:
    """The recipe's parts of a kind (callback, logger, strategy), by path.

    Each is ``Target(spec, *context)``, or an object of the class that it names by import path.

    Raises:
        SpecError: one of them rejects its options, or its target returns an object of another class.
        PluginError: a component cannot be built.
    """
    built = {}
    for path, of, spec in parts_of(recipe):
        if of == kind:
            made = built[show(path)] = _build(spec, show(path), context)
            if not isinstance(made, base := _base(kind)):
                what = f"its target returned an object of type {type(made).__name__}"
                raise SpecError([Problem(what=what, at=show(path), expected=f"a {base.__module__}.{base.__name__}")])
    return built


def _base(kind: str) -> type:
    """The class of Lightning that the parts of a kind are subclasses of."""
    base: type = imported(current().kind(kind).imports, f"kind '{kind}'", "what its classes are")
    return base


def _build(spec: Spec, at: str, context: Sequence[Any]) -> Any:
    try:
        if not isinstance(spec, Imported):
            return current().build(spec, *context)
        cls = getattr(importlib.import_module(spec.path.rpartition(".")[0]), spec.name)
        return cls(**_converted(cls, spec))
    except MoekitError:
        raise
    except Exception as error:
        name = spec.name if isinstance(spec, Imported) else current().use_name(spec)
        what = f"{name} rejects its options: {type(error).__name__}: {' '.join(str(error).split())}"
        raise SpecError([Problem(what=what, at=at)]) from error


def keep_arguments(recipe: Recipe, saved: Mapping[str, Any], built: Mapping[str, Callback]) -> Callback:
    """Has callbacks named by import path keep the arguments that were changed on resume.

    Some, such as ``EarlyStopping``, hold arguments in their state, and restore the old ones.

    Args:
        recipe: of the resumed run.
        saved: the plain spec in the checkpoint.
        built: the recipe's callbacks by path, with the new arguments.

    Returns:
        A callback that sets them again when states are restored: before training starts, as late as with shards.
    """
    changed = []
    for path, kind, spec in parts_of(recipe):
        if kind == "callback" and isinstance(spec, Imported):
            callback, before = built[show(path)], saved["trainer"]["callbacks"].get(path[-1], {})
            names = [name for name in {**before, **spec.arguments} if before.get(name) != spec.arguments.get(name)]
            changed += [(callback, name, getattr(callback, name)) for name in names if hasattr(callback, name)]

    def set_again(*_: object) -> None:
        for callback, name, value in changed:
            setattr(callback, name, value)

    return LambdaCallback(on_fit_start=set_again, on_train_start=set_again)


def check_callbacks(callbacks: Mapping[str, Callback]) -> None:
    """Rejects callbacks that cannot work in a run, and two that would share a state in checkpoints.

    Args:
        callbacks: by where they come from: a path in the spec, or a plugin.

    Raises:
        SpecError: with every one of them.
    """
    problems, owners = [], dict[str, str]()
    for at, callback in callbacks.items():
        if why := refusal(type(callback)):
            problems.append(Problem(what=f"{type(callback).__name__} has no place in a run: {why}", at=at))
        if type(callback).state_dict is Callback.state_dict:
            continue
        first = owners.setdefault(callback.state_key, at)
        if first != at:
            what = f"its state would have the key of {first} in checkpoints: {callback.state_key}"
            problems.append(Problem(what=what, at=at, expected="one of the two, or options that tell them apart"))
    if problems:
        raise SpecError(problems)


def check_states(callbacks: Mapping[str, Callback]) -> None:
    """Rejects a callback whose state no checkpoint can hold. Called before the first step.

    Raises:
        MoekitError: naming the callback and the value.
    """
    for at, callback in callbacks.items():
        try:
            Encoded(callback.state_dict())
        except CheckpointError as error:
            what = str(error).replace("cannot save", f"{at}: the state of {type(callback).__name__} holds", 1)
            raise MoekitError(f"{what}\n  a checkpoint could not be read without running code") from error


def left_states(saved: Iterable[str], callbacks: Iterable[Callback]) -> list[str]:
    """The keys of states in a checkpoint that no callback of this run has."""
    known = {callback.state_key for callback in callbacks}
    return [key for key in saved if key not in known]
