"""The hooks that a plugin may implement, one for each kind of component. Each returns a list of ``Component``.

A plugin is a module that an entry point of the group ``moekit`` names. It states ``MOEKIT_API = 1`` and implements any
of the hooks, marked with ``moekit.hookimpl``::

    from moekit import Component, hookimpl

    MOEKIT_API = 1

    @hookimpl
    def moekit_routers():
        return [Component(name="mine", spec=Mine, target="my_package.router:MyRouter", summary="...")]
"""

from __future__ import annotations

import pluggy

from moekit.component import Component

hookspec = pluggy.HookspecMarker("moekit")
hookimpl = pluggy.HookimplMarker("moekit")


@hookspec
def moekit_routers() -> list[Component]:  # type: ignore[empty-body]
    """Routers: ``Target(spec: RouterSpec, dims: LayerDims)``, a ``moekit.Router``."""


@hookspec
def moekit_experts() -> list[Component]:  # type: ignore[empty-body]
    """Experts modules: ``Target(spec: ExpertSpec, dims: LayerDims)``, a ``moekit.ExpertBank``."""


@hookspec
def moekit_dispatchers() -> list[Component]:  # type: ignore[empty-body]
    """Dispatchers: ``Target(spec: DispatcherSpec, dims: LayerDims)``, a ``moekit.Dispatcher``."""


@hookspec
def moekit_balancers() -> list[Component]:  # type: ignore[empty-body]
    """Balancers: ``Target(spec: BalancerSpec, dims: LayerDims)``, a ``moekit.Balancer``."""


@hookspec
def moekit_attention() -> list[Component]:  # type: ignore[empty-body]
    """Attention: ``Target(spec: AttentionSpec, dim: int, causal: bool)``, a module ``x_BSD -> y_BSD`` of width D = dim.

    If ``causal``, a position attends to none after it.
    """


@hookspec
def moekit_models() -> list[Component]:  # type: ignore[empty-body]
    """Models: ``Target(spec: ModelSpec)``, a ``moekit.Model``."""


@hookspec
def moekit_objectives() -> list[Component]:  # type: ignore[empty-body]
    """Objectives: ``Target(spec: ObjectiveSpec)``, a ``moekit.Objective``."""


@hookspec
def moekit_data() -> list[Component]:  # type: ignore[empty-body]
    """Data: ``Target(spec: DataSpec)``, a ``moekit.Data``."""


@hookspec
def moekit_optimizers() -> list[Component]:  # type: ignore[empty-body]
    """Optimizers: ``target(spec: OptimizerSpec, model: nn.Module)``, a ``torch.optim.Optimizer``."""


@hookspec
def moekit_schedules() -> list[Component]:  # type: ignore[empty-body]
    """Schedules: ``target(spec: ScheduleSpec, total_steps: int)``, a function ``step -> factor`` of the rate."""


@hookspec
def moekit_recipes() -> list[Component]:  # type: ignore[empty-body]
    """Recipes: usually ``list(moekit.recipes_in(folder))`` of a folder of YAML files."""
