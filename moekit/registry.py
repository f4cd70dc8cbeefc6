"""The registry: the components of the installed plugins, by name. It is immutable.

``MOEKIT_DISABLE_PLUGINS=a,b`` disables plugins; ``MOEKIT_STRICT_PLUGINS=1`` raises on the first that fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from moekit.component import Component
from moekit.discovery import installed
from moekit.errors import PluginError, Problem, UnknownName, nearest
from moekit.plugin import Plugin, check_unique, load_plugin
from moekit.spec.fields import Spec
from moekit.spec.recipe import KINDS, Recipe, plural

__all__ = ["Plugin", "Registry", "build", "current", "discover", "kind_named", "load_plugin", "temporary"]

MAX_LISTED = 20  # an error lists no more names than this; above, it says how many there are


class Registry:
    """The components of a list of plugins. Immutable.

    Attributes:
        plugins: the plugins, loaded and failed.
        disabled: names of plugins that the user disabled.
    """

    def __init__(self, plugins: Iterable[Plugin], *, disabled: Iterable[str] = ()) -> None:
        self.plugins: tuple[Plugin, ...] = tuple(plugins)
        self.disabled: tuple[str, ...] = tuple(sorted(disabled))
        self._by_name: dict[str, dict[str, list[Component]]] = {kind: {} for kind in KINDS}
        self._by_spec: dict[type[Spec], Component] = {}
        for plugin in self.plugins:
            for component in plugin.components:
                self._by_name[component.kind].setdefault(component.name, []).append(component)
                if component.spec is not Recipe:
                    self._by_spec[component.spec] = component

    @property
    def failed(self) -> tuple[Plugin, ...]:
        """Plugins that are installed but cannot be used."""
        return tuple(p for p in self.plugins if p.error is not None)

    def components(self, kind: str | None = None) -> list[Component]:
        """All components of one kind, or of every kind, sorted by name.

        Raises:
            UnknownName: there is no such kind.
        """
        kinds = [kind_named(kind)] if kind else list(KINDS)
        return [c for k in kinds for name in sorted(self._by_name[k]) for c in self._by_name[k][name]]

    def names(self, kind: str) -> list[str]:
        """The names of this kind that ``use:`` takes, sorted.

        Raises:
            UnknownName: there is no such kind.
        """
        return sorted(self._by_name[kind_named(kind)])

    def get(self, kind: str, name: str) -> Component:
        """The component that ``use: name`` refers to; ``plugin/name`` chooses where two plugins offer the name.

        Raises:
            UnknownName: the kind does not exist, no component of this kind has the name, or two plugins offer it.
            PluginError: ``plugin/name`` names a plugin that failed to load.
        """
        kind = kind_named(kind)
        found = self._by_name[kind].get(name, [])
        plugin, _, rest = name.partition("/")
        if not found and rest:
            found = [c for c in self._by_name[kind].get(rest, []) if c.plugin == plugin]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownName(self._ambiguous(kind, name, found))
        if rest:
            self._reject_failed(plugin, kind, name)
        raise UnknownName(self._unknown(kind, name))

    def component_of(self, spec: Spec) -> Component:
        """The component that ``spec`` configures.

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
        """The shortest name after ``use:`` for this spec's component.

        Raises:
            PluginError: no plugin registered this spec class.
        """
        return self.short_name(self.component_of(spec))

    def short_name(self, component: Component) -> str:
        """The shortest name after ``use:`` for a component: its own, or ``plugin/name`` where two plugins offer it."""
        return component.name if len(self._by_name[component.kind][component.name]) == 1 else component.full_name

    def build(self, spec: Spec, *context: Any) -> Any:
        """Builds the component that ``spec`` configures: ``Target(spec, *context)``.

        Raises:
            PluginError: no plugin registered this spec class, or its target cannot be imported.
            Exception: any exception of the target, with a note that names the component and its plugin.
        """
        component = self.component_of(spec)
        target = component.load()
        try:
            return target(spec, *context)
        except Exception as error:
            error.add_note(f"while building {component.kind} '{component.full_name}'")
            raise

    def notes(self) -> tuple[str, ...]:
        """Why a name may be missing: plugins that failed, and plugins that the user disabled."""
        notes = [f"plugin '{p.name}' failed to load ({p.error}); see: moekit plugins" for p in self.failed]
        if self.disabled:
            notes.append(f"MOEKIT_DISABLE_PLUGINS disables {', '.join(self.disabled)}")
        return tuple(notes)

    def origin(self, component: Component) -> str:
        """The package and version that a component comes from: ``acme-moe 1.2``."""
        return next(p.origin for p in self.plugins if p.name == component.plugin and p.error is None)

    def _ambiguous(self, kind: str, name: str, found: list[Component]) -> Problem:
        offers = ", ".join(f"{c.full_name} ({self.origin(c)})" for c in found)
        return Problem(
            what=f"{kind} '{name}' is offered by {len(found)} plugins: {offers}",
            expected=" or ".join(f"'{c.full_name}'" for c in found),
            list_with="moekit plugins",
        )

    def _unknown(self, kind: str, name: str) -> Problem:
        names = self.names(kind)
        choices = [c.full_name for c in self.components(kind)] if "/" in name else []
        named = f"{len(names)} {plural(kind)}" if len(names) > MAX_LISTED else ", ".join(names) or "none"
        return Problem(
            what=f"unknown {kind} '{name}' (installed: {named})",
            nearest=nearest(name, [*names, *choices]),
            list_with=f"moekit ls {plural(kind)}",
            notes=self.notes(),
        )

    def _reject_failed(self, plugin: str, kind: str, name: str) -> None:
        for failed in self.failed:
            if failed.name == plugin:
                raise PluginError(
                    f"{kind} '{name}' cannot be used: plugin '{plugin}' ({failed.origin}) failed to load\n"
                    f"  {failed.error}\n"
                    "  see: moekit plugins"
                )


def kind_named(name: str) -> str:
    """The kind of a name, singular or plural: ``router`` for ``routers``.

    Raises:
        UnknownName: there is no such kind.
    """
    for kind in KINDS:
        if name in (kind, plural(kind)):
            return kind
    plurals = [plural(kind) for kind in KINDS]
    raise UnknownName(
        Problem(
            what=f"unknown kind '{name}' (kinds: {', '.join(plurals)})",
            nearest=nearest(name, [*plurals, *KINDS]),
            list_with="moekit ls",
        )
    )


def discover() -> Registry:
    """Loads every installed plugin; those that fail are kept with their error.

    Raises:
        PluginError: a plugin failed and ``MOEKIT_STRICT_PLUGINS`` is set.
    """
    disabled = {name.strip() for name in os.environ.get("MOEKIT_DISABLE_PLUGINS", "").split(",")} - {""}
    strict = os.environ.get("MOEKIT_STRICT_PLUGINS", "") not in ("", "0")
    return Registry(installed(disabled=disabled, strict=strict), disabled=disabled)


_current: Registry | None = None


def current() -> Registry:
    """The current registry; the first call discovers the plugins."""
    global _current
    if _current is None:
        _current = discover()
    return _current


def build(spec: Spec, *context: Any) -> Any:
    """Builds the component that ``spec`` configures, from the current registry: ``Target(spec, *context)``.

    Raises:
        PluginError: no plugin registered this spec class, or its target cannot be imported.
    """
    return current().build(spec, *context)


@contextmanager
def temporary(*modules: ModuleType | type) -> Iterator[Registry]:
    """Adds plugins within a ``with`` block: modules, or classes with the hooks as static methods.

    Example:
        ``with temporary(my_plugin): load("my_recipe.yaml")``

    Raises:
        PluginError: a plugin is invalid, or its name or a spec class is taken.
    """
    global _current
    before = current()
    plugins = list(before.plugins)
    for module in modules:
        plugin = load_plugin(module.__name__.rpartition(".")[2], module)
        check_unique(plugin, plugins)
        plugins.append(plugin)
    _current = Registry(plugins, disabled=before.disabled)
    try:
        yield _current
    finally:
        _current = before
