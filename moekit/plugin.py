"""``Plugin``, and the checks of a plugin when it is loaded: its API version, its hooks, and each of its components.

Loading imports no torch, because targets are names that are imported when they are built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pluggy

from moekit import hookspecs
from moekit.component import API_VERSION, Component
from moekit.errors import PluginError, nearest
from moekit.spec.fields import Spec
from moekit.spec.recipe import KINDS, Recipe, plural

_SIGNS = str.maketrans("", "", "_-.")  # allowed in a component's name, in addition to letters and digits
_KIND_OF_HOOK = {f"moekit_{plural(kind)}": kind for kind in KINDS}


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One plugin, loaded or failed.

    Attributes:
        name: the name of its entry point.
        module: the module that the entry point names.
        distribution, version: the installed package that it belongs to; empty for one added by ``temporary``.
        api: the API version that it states; None if it states none or could not be imported.
        components: what it offers.
        error: None, or one line that says why it is not used.
        trace: the traceback of the failure.
    """

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    api: int | None = None
    components: tuple[Component, ...] = ()
    error: str | None = None
    trace: str = ""

    @property
    def origin(self) -> str:
        """Its package and version, as ``acme-moe 1.2``; without a package, the name of its module."""
        return f"{self.distribution} {self.version}".strip() or self.module


def load_plugin(name: str, module: Any, *, distribution: str = "", version: str = "") -> Plugin:
    """Checks a plugin and collects its components.

    Args:
        name: the plugin's name.
        module: an imported module, or any object with the same attributes.
        distribution, version: the installed package that it belongs to, for messages.

    Raises:
        PluginError: the plugin states another API version, has an unknown hook or one with arguments, a hook raises,
            or a component is invalid.
    """
    api = getattr(module, "MOEKIT_API", None)
    if api != API_VERSION:
        said = "states no MOEKIT_API" if api is None else f"was written for plugin API {api!r}"
        supported = f"this moekit supports API {API_VERSION}: MOEKIT_API = {API_VERSION}"
        raise PluginError(f"plugin '{name}': {said}; {supported}")
    components: list[Component] = []
    for hook, function in _hooks(name, module):
        where = f"plugin '{name}': hook {hook}"
        try:
            offered = function()
            found = None if offered is None else list(offered)
        except Exception as error:
            raise PluginError(f"{where} raised {type(error).__name__}: {error}") from error
        if found is None:
            raise PluginError(f"{where} returned None; expected a list of Component")
        components += [dataclasses.replace(_checked(c, _KIND_OF_HOOK[hook], where), plugin=name) for c in found]
    _check_distinct(name, components)
    return Plugin(
        name=name,
        module=getattr(module, "__name__", type(module).__name__),
        distribution=distribution,
        version=version,
        api=api,
        components=tuple(components),
    )


def check_unique(plugin: Plugin, others: Iterable[Plugin]) -> None:
    """Checks that no other plugin has the same name or offers one of its spec classes.

    Raises:
        PluginError: one does. A spec class must identify its component, for a spec is built by its class.
    """
    mine = {c.spec: c for c in plugin.components if c.spec is not Recipe}
    for other in others:
        if other.name == plugin.name:
            raise PluginError(
                f"plugin '{plugin.name}': the name is taken by {other.origin}; uninstall it, or rename one"
            )
        for theirs in other.components:
            if theirs.spec in mine:
                raise PluginError(f"plugin '{plugin.name}': {_shared(mine[theirs.spec], theirs, other.origin)}")


class _Manager(pluggy.PluginManager):
    """pluggy's manager, made faster: it inspects only marked functions, not every attribute of a module."""

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return super().parse_hookspec_opts(module_or_class, name) if name in _KIND_OF_HOOK else None

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        marked = getattr(getattr(plugin, name, None), "moekit_impl", None)
        return super().parse_hookimpl_opts(plugin, name) if marked else None


def _hooks(name: str, module: Any) -> list[tuple[str, Any]]:
    """The hooks that a module implements, checked by pluggy and for mistakes that pluggy does not report."""
    manager = _Manager("moekit")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        said = " ".join(str(error).splitlines()[1:])
        raise PluginError(f"plugin '{name}': {said or error}") from error
    found: list[tuple[str, Any]] = []
    for hook in sorted(vars(manager.hook)):
        caller = getattr(manager.hook, hook)
        if not isinstance(caller, pluggy.HookCaller):
            continue
        for implementation in caller.get_hookimpls():
            if caller.has_spec():
                found.append((hook, implementation.function))
            elif not implementation.optionalhook:
                near = nearest(hook, list(_KIND_OF_HOOK))
                hint = f"did you mean '{near}'?" if near else f"hooks are {', '.join(_KIND_OF_HOOK)}"
                raise PluginError(f"plugin '{name}': unknown hook '{hook}'; {hint}")
    marked = {hook for hook, _ in found}
    for hook in _KIND_OF_HOOK:
        if hook not in marked and callable(getattr(module, hook, None)):
            raise PluginError(f"plugin '{name}': '{hook}' is not marked; write @moekit.hookimpl above it")
    return found


def _checked(offered: object, kind: str, where: str) -> Component:
    base: type[Spec] = KINDS[kind]
    if not isinstance(offered, Component):
        raise PluginError(f"{where}: expected Component, got {type(offered).__name__}")
    here = f"{where}, component '{offered.name}'"
    parts = offered.name.split("/") if kind == "recipe" else [offered.name]
    if not all(part[:1].isalnum() and part.translate(_SIGNS).isalnum() for part in parts):
        raise PluginError(f"{here}: a name is made of letters, digits, '_', '-' and '.'")
    spec: object = offered.spec
    if not (isinstance(spec, type) and issubclass(spec, base)):
        got = getattr(spec, "__name__", repr(spec))
        raise PluginError(f"{here}: its spec must be a subclass of {base.__name__}, got {got}")
    parameters = vars(spec).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise PluginError(f"{here}: write @dataclass(frozen=True, kw_only=True) above its spec {spec.__name__}")
    bare = [f.name for f in dataclasses.fields(spec) if "moekit" not in f.metadata]  # type: ignore[arg-type]
    if bare:
        raise PluginError(f"{here}: {spec.__name__}.{bare[0]}: declare it with option(), slot(), slots() or group()")
    if kind != "recipe" and not callable(offered.target) and not _is_import_name(offered.target):
        raise PluginError(f"{here}: its target must be 'package.module:Class' or a class, got {offered.target!r}")
    return offered


def _is_import_name(target: object) -> bool:
    module, colon, name = target.partition(":") if isinstance(target, str) else ("", "", "")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _check_distinct(name: str, components: list[Component]) -> None:
    names: set[tuple[str, str]] = set()
    specs: dict[type[Spec], Component] = {}
    for component in components:
        if (component.kind, component.name) in names:
            raise PluginError(f"plugin '{name}': offers {component.kind} '{component.name}' twice")
        names.add((component.kind, component.name))
        if component.spec is not Recipe:
            first = specs.setdefault(component.spec, component)
            if first is not component:
                raise PluginError(f"plugin '{name}': {_shared(component, first)}")


def _shared(mine: Component, theirs: Component, origin: str = "") -> str:
    whose = f"{theirs.kind} '{theirs.full_name}'" + (f" ({origin})" if origin else "")
    return f"{mine.kind} '{mine.name}' has the spec class {mine.spec.__name__} of {whose}; each needs its own"
