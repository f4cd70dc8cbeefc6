"""The registry: finds plugins, keeps what failed and why, resolves names. A snapshot that nothing mutates.

``MOEKIT_DISABLE_PLUGINS=a,b`` leaves plugins out; ``MOEKIT_STRICT_PLUGINS=1`` raises on the first that fails.
"""

from __future__ import annotations

import importlib.metadata
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pluggy

from moekit import hookspecs
from moekit.component import API_VERSION, Component
from moekit.errors import PluginError, Problem, UnknownName, nearest
from moekit.spec.fields import Spec
from moekit.spec.kinds import KINDS, Recipe, plural

ENTRY_POINT_GROUP = "moekit"


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What is known of one plugin, loaded or failed.

    Attributes:
        name: its entry-point name (its id).
        module: the module that the entry point names.
        distribution, version: the installed package that brought it.
        components: what it offers.
        error: None, or why it is not used, in a line.
        trace: the traceback of the failure.
    """

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    components: tuple[Component, ...] = ()
    error: str | None = None
    trace: str = ""


class Registry:
    """An immutable view of the components of a list of plugins."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins: tuple[Plugin, ...] = tuple(plugins)
        self._by_name: dict[str, dict[str, list[Component]]] = {kind: {} for kind in KINDS}
        self._by_spec: dict[type[Spec], Component] = {}
        for plugin in self.plugins:
            for component in plugin.components:
                self._by_name[component.kind].setdefault(component.name, []).append(component)
                if component.spec is not Recipe:
                    self._by_spec[component.spec] = component

    @property
    def failed(self) -> tuple[Plugin, ...]:
        """Plugins that are installed but could not be used."""
        return tuple(p for p in self.plugins if p.error is not None)

    def components(self, kind: str | None = None) -> list[Component]:
        """All components of one kind, or of every kind, by name."""
        kinds = [kind] if kind else list(KINDS)
        return [c for k in kinds for name in sorted(self._by_name[k]) for c in self._by_name[k][name]]

    def names(self, kind: str) -> list[str]:
        """Names that ``use:`` takes for this kind, sorted."""
        return sorted(self._by_name[kind])

    def get(self, kind: str, name: str) -> Component:
        """The component that ``use: name`` means; ``plugin/name`` chooses among namesakes.

        Raises:
            UnknownName: nothing of this kind has the name, or two plugins offer it.
            PluginError: ``plugin/name`` names a plugin that failed to load.
        """
        found = self._by_name[kind].get(name, [])
        if not found and "/" in name:
            plugin, _, rest = name.partition("/")
            self._refuse_failed(plugin, kind, rest)
            found = [c for c in self._by_name[kind].get(rest, []) if c.plugin == plugin]
        if len(found) == 1:
            return found[0]
        if found:
            offers = ", ".join(self._origin(c) for c in found)
            raise UnknownName(
                Problem(
                    what=f"{kind} '{name}' is offered by {len(found)} plugins: {offers}",
                    expected=" or ".join(f"'{c.full_name}'" for c in found),
                    list_with="moekit plugins",
                )
            )
        names = self.names(kind)
        failed = "".join(
            f"\n  note: plugin '{p.name}' failed to load ({p.error}); see: moekit plugins" for p in self.failed
        )
        raise UnknownName(
            Problem(
                what=f"unknown {kind} '{name}' (installed: {', '.join(names) or 'none'}){failed}",
                nearest=nearest(name, names),
                list_with=f"moekit ls {plural(kind)}",
            )
        )

    def component_of(self, spec: Spec) -> Component:
        """The component whose options ``spec`` holds.

        Raises:
            PluginError: no plugin registered this spec class.
        """
        try:
            return self._by_spec[type(spec)]
        except KeyError:
            raise PluginError(
                f"no plugin registered a component with the spec class {type(spec).__qualname__}; see: moekit plugins"
            ) from None

    def use_name(self, spec: Spec) -> str:
        """The shortest name that ``use:`` needs for this spec's component."""
        component = self.component_of(spec)
        return component.name if len(self._by_name[component.kind][component.name]) == 1 else component.full_name

    def build(self, spec: Spec, *context: Any) -> Any:
        """Builds the component that ``spec`` configures: ``Target(spec, *context)``."""
        return self.component_of(spec).load()(spec, *context)

    def _origin(self, component: Component) -> str:
        plugin = next(p for p in self.plugins if p.name == component.plugin)
        return f"{component.full_name} ({plugin.distribution or plugin.module} {plugin.version})".replace(" )", ")")

    def _refuse_failed(self, name: str, kind: str, rest: str) -> None:
        for plugin in self.failed:
            if plugin.name == name:
                raise PluginError(
                    f"{kind} '{name}/{rest}' cannot be used: plugin '{name}' failed to load\n  {plugin.error}\n"
                    "  see: moekit plugins"
                )


def load_plugin(name: str, module: Any, *, distribution: str = "", version: str = "") -> Plugin:
    """Checks a plugin module against the hook specs and collects its components.

    Args:
        name: the plugin's id.
        module: an imported module (or any object with the same attributes).

    Raises:
        PluginError: another API version, a hook with wrong arguments or an unknown name, a bad component.
    """
    api = getattr(module, "MOEKIT_API", None)
    if api != API_VERSION:
        said = "states no MOEKIT_API" if api is None else f"was written for plugin API {api}"
        raise PluginError(f"plugin '{name}' {said}; this moekit speaks API {API_VERSION} (MOEKIT_API = {API_VERSION})")
    manager = pluggy.PluginManager("moekit")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"plugin '{name}': {error}") from error
    components: list[Component] = []
    for kind, base in KINDS.items():
        hook = getattr(manager.hook, f"moekit_{plural(kind)}")
        for offered in hook():
            components += [_checked(name, kind, base, c) for c in offered]
    return Plugin(
        name=name,
        module=getattr(module, "__name__", type(module).__name__),
        distribution=distribution,
        version=version,
        components=tuple(components),
    )


def _checked(plugin: str, kind: str, base: type[Spec], component: object) -> Component:
    hook = f"plugin '{plugin}', hook moekit_{plural(kind)}"
    if not isinstance(component, Component):
        raise PluginError(f"{hook}: expected Component, got {type(component).__name__}")
    if not (isinstance(component.spec, type) and issubclass(component.spec, base)):
        raise PluginError(f"{hook}, component '{component.name}': its spec must be a subclass of {base.__name__}")
    return replace(component, plugin=plugin)


def discover() -> Registry:
    """Loads every plugin of the entry-point group; failures are kept, unless MOEKIT_STRICT_PLUGINS is set."""
    disabled = {n.strip() for n in os.environ.get("MOEKIT_DISABLE_PLUGINS", "").split(",")}
    strict = os.environ.get("MOEKIT_STRICT_PLUGINS", "") not in ("", "0")
    plugins: list[Plugin] = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        if entry.name in disabled:
            continue
        distribution = entry.dist.name if entry.dist else ""
        version = entry.dist.version if entry.dist else ""
        try:
            plugins.append(load_plugin(entry.name, entry.load(), distribution=distribution, version=version))
        except Exception as error:
            if strict:
                raise
            why = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            plugins.append(
                Plugin(
                    name=entry.name,
                    module=entry.value,
                    distribution=distribution,
                    version=version,
                    error=why,
                    trace=traceback.format_exc(),
                )
            )
    return Registry(plugins)


_current: Registry | None = None


def current() -> Registry:
    """The registry in use; plugins are discovered on the first call."""
    global _current
    if _current is None:
        _current = discover()
    return _current


def build(spec: Spec, *context: Any) -> Any:
    """Builds the component that ``spec`` configures, from the current registry: ``Target(spec, *context)``."""
    return current().build(spec, *context)


@contextmanager
def temporary(*modules: ModuleType | type) -> Iterator[Registry]:
    """Adds plugins for the length of a ``with`` block: modules, or classes with the hooks as static methods.

    Example:
        ``with temporary(my_plugin): load("my_recipe.yaml")``
    """
    global _current
    before = current()
    added = [load_plugin(m.__name__.rpartition(".")[2], m) for m in modules]
    _current = Registry([*before.plugins, *added])
    try:
        yield _current
    finally:
        _current = before
