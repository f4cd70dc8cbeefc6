"""The registry: what the installed plugins offer, by name. It is immutable.

``MOEKIT_DISABLE_PLUGINS=a,b`` disables plugins; ``MOEKIT_STRICT_PLUGINS=1`` raises on the first that fails.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from types import MappingProxyType, ModuleType
from typing import Any

import pluggy

from moekit.component import Component, Kind, Offer, RecipeFile, Verb, imported
from moekit.discovery import checked, installed
from moekit.errors import PluginError, Problem, UnknownName, nearest
from moekit.plugin import Plugin, load_plugin

__all__ = ["Plugin", "Registry", "build", "current", "discover", "load_plugin", "temporary"]

MAX_LISTED = 20  # an error lists no more names than this; above, it says how many there are


class Registry:
    """What a list of plugins offers. Immutable.

    Attributes:
        plugins: the plugins, loaded and failed.
        disabled: names of plugins that the user disabled.
        kinds: the kinds of component by name, in the singular.
    """

    def __init__(self, plugins: Iterable[Plugin], *, disabled: Iterable[str] = ()) -> None:
        self.plugins: tuple[Plugin, ...] = tuple(plugins)
        self.disabled: tuple[str, ...] = tuple(sorted(disabled))
        self.kinds: Mapping[str, Kind] = MappingProxyType({kind.name: kind for p in self.plugins for kind in p.kinds})
        self._offers: dict[str, dict[str, list[Any]]] = {}
        self._by_spec: dict[str, Component] = {}
        for plugin in self.plugins:
            for offer in (*plugin.components, *plugin.recipes, *plugin.verbs):
                self._offers.setdefault(offer.kind, {}).setdefault(offer.name, []).append(offer)
            self._by_spec |= plugin.specs

    @property
    def failed(self) -> tuple[Plugin, ...]:
        """Plugins that are installed but cannot be used."""
        return tuple(p for p in self.plugins if p.error is not None)

    @property
    def recipes(self) -> list[RecipeFile]:
        """The recipes, sorted by name."""
        return self._sorted("recipe")

    @property
    def verbs(self) -> list[Verb]:
        """The verbs, moekit's own and those of plugins, sorted by name."""
        return self._sorted("verb")

    @property
    def resolvers(self) -> dict[str, tuple[str, str]]:
        """The plugin and the import string of each resolver; of two of one name, those of the first plugin."""
        return {name: (p.name, target) for p in reversed(self.plugins) for name, target in p.resolvers.items()}

    def components(self, kind: str | None = None) -> list[Component]:
        """All components of one kind, or of every kind, sorted by name.

        Raises:
            UnknownName: there is no such kind.
        """
        return [c for k in ([self.kind(kind).name] if kind else self.kinds) for c in self._sorted(k)]

    def names(self, kind: str) -> list[str]:
        """The names of this kind that ``use:`` takes, sorted.

        Raises:
            UnknownName: there is no such kind.
        """
        return sorted(self._offers.get(self.kind(kind).name, {}))

    def kind(self, name: str) -> Kind:
        """The kind of a name, singular or plural: ``router`` or ``routers``.

        Raises:
            UnknownName: there is no such kind.
        """
        found = self.kinds.get(name)
        if found is None:
            plurals = {kind.plural: kind for kind in self.kinds.values()}
            if name in plurals:
                return plurals[name]
            near, what = nearest(name, [*plurals, *self.kinds]), f"unknown kind '{name}' (kinds: {', '.join(plurals)})"
            raise UnknownName(Problem(what=what, nearest=near, list_with="moekit ls"))
        return found

    def get(self, kind: str, name: str, *, home: str = "") -> Component:
        """The component that ``use: name`` refers to; ``plugin/name`` chooses where two plugins offer the name.

        Args:
            kind: its kind, singular or plural.
            name: its name, or ``plugin/name``.
            home: the plugin whose recipe uses the name: of several that offer it, a companion of that plugin is meant.

        Raises:
            UnknownName: the kind does not exist, no component of this kind has the name, or two plugins offer it.
            PluginError: ``plugin/name`` names a plugin that failed to load.
        """
        offered = self._offers.get(kind, {}).get(name, ())
        if len(offered) == 1 and kind in self.kinds:  # as nearly always
            component: Component = offered[0]
            return component
        of = self.kind(kind)
        component = self._find(of.name, of.plural, name, home)
        return component

    def recipe(self, name: str, *, home: str = "") -> RecipeFile:
        """The recipe of a name. Names and errors are as in ``get``."""
        found: RecipeFile = self._find("recipe", "recipes", name, home)
        return found

    def verb(self, name: str) -> Verb:
        """The verb of a name. Names and errors are as in ``get``."""
        found: Verb = self._find("verb", "verbs", name)
        return found

    def default(self, kind: str) -> Component | None:
        """The component that fills a slot of this kind by default; None if none claims to.

        Raises:
            UnknownName: there is no such kind, or several components claim to be the default.
        """
        of = self.kind(kind)
        found = [c for c in self.components(of.name) if c.default]
        if len(found) > 1:
            what = f"{len(found)} {of.plural} claim to be the default: {self._with_origins(found)}; name one"
            raise UnknownName(Problem(what=what, list_with=f"moekit ls {of.plural}"))
        return found[0] if found else None

    def component_of(self, spec: object) -> Component:
        """The component that ``spec`` configures.

        Raises:
            PluginError: no plugin registered this spec class, or ``spec`` is not a spec.
        """
        cls = type(spec)
        component = self._by_spec.get(f"{cls.__module__}:{cls.__qualname__}")
        if component is not None and component.spec_class is cls:
            return component
        if not getattr(cls, "kind", ""):
            raise PluginError(
                f"{spec!r} is of class {cls.__name__}, not a spec; build takes a spec such as TopK(top_k=2), "
                "which moekit.component_spec(kind, {'use': name, ...}) makes of a name"
            )
        raise PluginError(
            f"no plugin registered a component with the spec class {cls.__qualname__}; see: moekit plugins"
        )

    def use_name(self, spec: object) -> str:
        """The shortest name after ``use:`` for this spec's component.

        Raises:
            PluginError: no plugin registered this spec class.
        """
        return self.short_name(self.component_of(spec))

    def short_name(self, offer: Offer) -> str:
        """The shortest name of an offer: its own, or ``plugin/name`` where two plugins offer it."""
        return offer.name if len(self._offers[offer.kind][offer.name]) == 1 else offer.full_name

    def build(self, spec: Any, *context: Any) -> Any:
        """Builds the component that ``spec`` configures: ``Target(spec, *context)``.

        Raises:
            PluginError: no plugin registered this spec class, or its target cannot be imported.
            Exception: any exception of the target, with a note that names the component and its plugin.
        """
        component = self.component_of(spec)
        target = imported(component.target, component, "its target")
        try:
            return target(spec, *context)
        except Exception as error:
            error.add_note(f"while building {component}")
            raise

    def hooks(self, name: str) -> list[tuple[Plugin, pluggy.HookImpl]]:
        """The implementations of a life-cycle hook, in order: by plugin; ``tryfirst`` and ``trylast`` hold."""
        found = [(p, p.hooks[name]) for p in sorted(self.plugins, key=attrgetter("name")) if name in p.hooks]
        return sorted(found, key=lambda each: each[1].trylast - each[1].tryfirst)

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        failed: Callable[[Plugin, Exception], object] | None = None,
        without: Collection[str] = (),
    ) -> list[tuple[Plugin, Any]]:
        """Calls every implementation of a life-cycle hook; returns what each plugin's returned.

        Args:
            name: of the hook.
            arguments: of the hook, by name.
            failed: called with a plugin and what its implementation raised; the others are called all the same.
            without: names of plugins that are not called.

        Raises:
            Exception: what an implementation raised, with a note that names the hook and the plugin, if there is no
                ``failed``.
        """
        returned = []
        for plugin, implementation in self.hooks(name):
            if plugin.name in without:
                continue
            try:
                out = implementation.function(*(arguments[argument] for argument in implementation.argnames))
                returned.append((plugin, out if out is None or not isinstance(out, Iterator) else list(out)))
            except Exception as error:
                error.add_note(f"in hook {name} of plugin '{plugin.name}' ({plugin.origin})")
                if failed is None:
                    raise
                failed(plugin, error)
        return returned

    def companions(self, plugin: str) -> frozenset[str]:
        """The plugins that a recipe of ``plugin`` can count on: those of its package and of the packages it depends on.

        A short name in the recipe means one of theirs first, so that installing another plugin changes no recipe.
        """
        home = next((p.distribution for p in self.plugins if p.name == plugin), "")
        if not home:
            return frozenset({plugin})
        try:
            required = importlib.metadata.requires(home) or []
        except importlib.metadata.PackageNotFoundError:
            required = []
        names = {_normalized(home), *(_normalized(re.split(r"[^\w.-]", line)[0]) for line in required)}
        return frozenset(p.name for p in self.plugins if p.name == plugin or _normalized(p.distribution) in names)

    def notes(self) -> tuple[str, ...]:
        """Why a name may be missing: plugins that failed, and plugins that the user disabled."""
        notes = [f"plugin '{p.name}' failed to load ({p.error}); see: moekit plugins" for p in self.failed]
        if self.disabled:
            notes.append(f"MOEKIT_DISABLE_PLUGINS disables {', '.join(self.disabled)}")
        return tuple(notes)

    def origin(self, offer: Offer) -> str:
        """The package and version that an offer comes from: ``acme-moe 1.2``."""
        return next(p.origin for p in self.plugins if p.name == offer.plugin and p.error is None)

    def _sorted(self, what: str) -> list[Any]:
        offers = self._offers.get(what, {})
        return [offer for name in sorted(offers) for offer in offers[name]]

    def _find(self, what: str, plural: str, name: str, home: str = "") -> Any:
        offers = self._offers.get(what, {})
        found = offers.get(name, [])
        plugin, _, rest = name.partition("/")
        if not found and rest:
            found = [offer for offer in offers.get(rest, []) if offer.plugin == plugin]
        if len(found) > 1 and home:
            companions = self.companions(home)
            found = [offer for offer in found if offer.plugin in companions] or found
        if len(found) == 1:
            return found[0]
        if found:
            offered = f"{what} '{name}' is offered by {len(found)} plugins: {self._with_origins(found)}"
            expected = " or ".join(f"'{offer.full_name}'" for offer in found)
            raise UnknownName(Problem(what=offered, expected=expected, list_with="moekit plugins"))
        failed = next((p for p in self.failed if rest and p.name == plugin), None)
        if failed is not None:
            raise PluginError(
                f"{what} '{name}' cannot be used: plugin '{plugin}' ({failed.origin}) failed to load\n"
                f"  {failed.error}\n"
                "  see: moekit plugins"
            )
        names = sorted(offers)
        full_names = [offer.full_name for offer in self._sorted(what)] if "/" in name else []
        named = f"{len(names)} {plural}" if len(names) > MAX_LISTED else ", ".join(names) or "none"
        raise UnknownName(
            Problem(
                what=f"unknown {what} '{name}' (installed: {named})",
                nearest=nearest(name, [*names, *full_names]),
                list_with="moekit help" if what == "verb" else f"moekit ls {plural}",
                notes=self.notes(),
            )
        )

    def _with_origins(self, offers: Iterable[Offer]) -> str:
        return ", ".join(f"{offer.full_name} ({self.origin(offer)})" for offer in offers)


def _normalized(distribution: str) -> str:
    """The name of a package, spelt as packaging compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


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


def build(spec: Any, *context: Any) -> Any:
    """Builds the component that ``spec`` configures, from the current registry: ``Target(spec, *context)``.

    Raises:
        PluginError: no plugin registered this spec class, or its target cannot be imported.
    """
    return (_current or current()).build(spec, *context)


@contextmanager
def temporary(*modules: ModuleType | type) -> Iterator[Registry]:
    """Adds plugins within a ``with`` block: modules, or classes with the hooks as static methods.

    Example:
        ``with temporary(my_plugin): load("my_recipe.yaml")``

    Raises:
        PluginError: a plugin is invalid, or its name, a kind or a spec class is taken.
    """
    global _current
    before = current()
    added = [load_plugin(module.__name__.rpartition(".")[2], module) for module in modules]
    plugins = [*before.plugins, *added]
    for plugin, after in zip(plugins, checked(plugins), strict=True):
        if after.error != plugin.error:
            raise PluginError(f"plugin '{plugin.name}': {after.error}")
    _current = Registry(plugins, disabled=before.disabled)
    try:
        yield _current
    finally:
        _current = before
