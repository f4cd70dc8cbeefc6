"""The hooks that a plugin may implement: five say what it offers, six are called during the life of a run.

A plugin is a module that an entry point of the group ``moekit`` names. It states ``MOEKIT_API = 2`` and implements any
of the hooks, marked with ``moekit.hookimpl``::

    from moekit import Component, hookimpl

    MOEKIT_API = 2

    @hookimpl
    def moekit_components():
        return [Component(kind="router", name="mine", spec="my_package:Mine", target="my_package.module:MyRouter", ...)]

The hooks of what a plugin offers are called once, when plugins are first needed. A mistake in one fails that plugin
alone; ``moekit plugins`` prints it. Hooks are called in the order of the plugins' names, and ``tryfirst`` and
``trylast`` change it; ``wrapper`` is refused, because a plugin must not be able to stop another.
"""

from __future__ import annotations

import pluggy

TYPE_CHECKING = False  # importing typing slows the start of every command
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from moekit.component import Component, Kind, RecipeFile, Verb
    from moekit.spec.recipe import Recipe
    from moekit.training.module import LitMoE
    from moekit.training.run.hooks import EndedRun, EndedStep, ReportRow, StartingRun
    from moekit.training.step import BrokenStep, Cause

hookspec = pluggy.HookspecMarker("moekit")
hookimpl = pluggy.HookimplMarker("moekit")


@hookspec
def moekit_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Its components: routers, experts, data, callbacks and so on, of its own kinds too."""


@hookspec
def moekit_kinds() -> Iterable[Kind]:  # type: ignore[empty-body]
    """Its kinds of component, which slots may then take: ``slot("reward")``."""


@hookspec
def moekit_recipes() -> Iterable[RecipeFile]:  # type: ignore[empty-body]
    """Its recipes: usually ``moekit.recipes_in(folder)`` of a folder of YAML files."""


@hookspec
def moekit_verbs() -> Iterable[Verb]:  # type: ignore[empty-body]
    """Its verbs of the command line. A verb ``config.mine`` is called by ``moekit config mine``."""


@hookspec
def moekit_resolvers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Its resolvers of interpolations by name: ``{"acme.square": "acme.math:square"}`` for ``${acme.square:3}``."""


@hookspec
def moekit_recipe_loaded(recipe: Recipe) -> Iterable[str] | None:
    """Called at the end of every ``load``, with the recipe, whose options are all valid. Imports no torch.

    Returns conflicts, one sentence each; ``load`` reports them. An exception ends ``load``; a note names the plugin.
    """


@hookspec
def moekit_module_built(module: LitMoE) -> None:
    """Called on every rank once the model has its weights, before it is compiled and trained.

    An exception ends the run; a note names the plugin.
    """


@hookspec
def moekit_run_starting(run: StartingRun) -> None:
    """Called on every rank when the data is read and nothing is written yet.

    ``run.callbacks.append`` adds a callback, ``run.loggers.append`` a logger. An exception ends the run; a note names
    the plugin.
    """


@hookspec
def moekit_step_not_finite(step: BrokenStep) -> Cause | None:
    """Called on every rank when the loss or the gradients of a step are NaN or infinite, with its batches.

    Returns what caused it; the first answer counts. An exception ends the run; a note names the plugin.
    """


@hookspec
def moekit_step_ended(run: EndedStep) -> None:
    """Called on rank 0 after every optimizer step, with its number and the metrics logged so far.

    After an exception the hook is not called again in this run, and a warning names the plugin.
    """


@hookspec
def moekit_run_ended(run: EndedRun) -> Iterable[ReportRow | Path] | None:
    """Called on rank 0 before the report is printed and written, also after a failure.

    Returns rows for the report's table, and paths of files that it wrote, which the report lists. After an exception, a
    warning names the plugin.
    """
