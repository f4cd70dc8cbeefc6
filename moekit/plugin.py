"""``Plugin``, and the checks of a plugin when it is loaded: its API version, its hooks, and each thing that it offers.

Loading imports neither torch nor any spec that is named by an import string.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from moekit import hookspecs
from moekit.component import API_VERSION, Component, Kind, Offer, RecipeFile, Verb, check_spec_class, is_import_string
from moekit.errors import PluginError, nearest
from moekit.record import Record

HOOKS = (*hookspecs.OFFERS, *hookspecs.LIFE_CYCLE)
_SIGNS = str.maketrans("", "", "_-.")  # allowed in a name, in addition to letters and digits
_O = TypeVar("_O")


class Plugin(Record):
    """One plugin, loaded or failed.

    Attributes:
        name: the name of its entry point.
        module: the module that the entry point names.
        distribution, version: the installed package that it belongs to; empty for one added by ``temporary``.
        api: the API version that it states; None if it states none or could not be imported.
        components, kinds, recipes, verbs, resolvers: what it offers.
        hooks: its implementations of the life-cycle hooks, by the hook's name.
        error: None, or one line that says why it is not used.
        trace: the traceback of the failure.
        seconds: how long its import took.
        imports_torch: whether its import imports torch, which slows every command.
    """

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    api: int | None = None
    components: tuple[Component, ...] = ()
    kinds: tuple[Kind, ...] = ()
    recipes: tuple[RecipeFile, ...] = ()
    verbs: tuple[Verb, ...] = ()
    resolvers: Mapping[str, str] = field(default_factory=dict)
    hooks: Mapping[str, pluggy.HookImpl] = field(default_factory=dict)
    error: str | None = None
    trace: str = ""
    seconds: float = 0.0
    imports_torch: bool = False

    @property
    def origin(self) -> str:
        """Its package and version, as ``acme-moe 1.2``; without a package, the name of its module."""
        return f"{self.distribution} {self.version}".strip() or self.module

    def failed(self, why: str, trace: str = "") -> Plugin:
        """The same plugin, which offers nothing."""
        nothing = Plugin(name=self.name, module=self.module)
        kept = {"distribution", "version", "api", "seconds"}
        return dataclasses.replace(nothing, error=why, trace=trace, **{name: getattr(self, name) for name in kept})


def load_plugin(name: str, module: Any, *, distribution: str = "", version: str = "") -> Plugin:
    """Checks a plugin and collects what it offers.

    Args:
        name: the plugin's name.
        module: an imported module, or any object with the same attributes.
        distribution, version: the installed package that it belongs to, for messages.

    Raises:
        PluginError: the plugin states another API version, has an unknown hook or one with wrong arguments, a hook
            raises, or something that it offers is invalid.
    """
    api = getattr(module, "MOEKIT_API", None)
    if api != API_VERSION:
        said = "states no MOEKIT_API" if api is None else f"was written for plugin API {api!r}"
        supported = f"this moekit supports API {API_VERSION}: MOEKIT_API = {API_VERSION}"
        raise PluginError(f"plugin '{name}': {said}; {supported}")
    hooks = _hooks(name, module)

    def offered(hook: str, cls: type[_O], check: Callable[[_O, str], None]) -> tuple[_O, ...]:
        where = f"plugin '{name}': hook {hook}"
        found = list(_called(hooks[hook].function, where, f"a list of {cls.__name__}")) if hook in hooks else []
        for each in found:
            if not isinstance(each, cls):
                raise PluginError(f"{where}: expected {cls.__name__}, got {type(each).__name__}")
            check(each, where)
        return tuple(dataclasses.replace(each, plugin=name) for each in found)

    plugin = Plugin(
        name=name,
        module=getattr(module, "__name__", type(module).__name__),
        distribution=distribution,
        version=version,
        api=api,
        components=offered("moekit_components", Component, _check_component),
        kinds=offered("moekit_kinds", Kind, _check_kind),
        recipes=offered("moekit_recipes", RecipeFile, _check_recipe),
        verbs=offered("moekit_verbs", Verb, _check_verb),
        resolvers=_resolvers(name, hooks),
        hooks={hook: hooks[hook] for hook in hookspecs.LIFE_CYCLE if hook in hooks},
    )
    _check_distinct(plugin)
    return plugin


class _Manager(pluggy.PluginManager):
    """pluggy's manager, made faster: it inspects only marked functions, not every attribute of a module."""

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return super().parse_hookspec_opts(module_or_class, name) if name in HOOKS else None

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        if isinstance(plugin, ModuleType) and name not in vars(plugin):
            return None  # a name that is imported on first use, which could import torch
        marked = getattr(getattr(plugin, name, None), "moekit_impl", None)
        return super().parse_hookimpl_opts(plugin, name) if marked else None


def _hooks(name: str, module: Any) -> dict[str, pluggy.HookImpl]:
    """The hooks that a module implements, checked by pluggy and for mistakes that pluggy does not report."""
    manager = _Manager("moekit")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        said = " ".join(str(error).splitlines()[1:])
        raise PluginError(f"plugin '{name}': {said or error}") from error
    found: dict[str, pluggy.HookImpl] = {}
    for hook in sorted(vars(manager.hook)):
        caller = getattr(manager.hook, hook)
        if not isinstance(caller, pluggy.HookCaller):
            continue
        for implementation in caller.get_hookimpls():
            if caller.has_spec():
                found[hook] = implementation
            elif not implementation.optionalhook:
                near = nearest(hook, list(HOOKS))
                hint = f"did you mean '{near}'?" if near else f"hooks are {', '.join(HOOKS)}"
                raise PluginError(f"plugin '{name}': unknown hook '{hook}'; {hint}")
            if implementation.wrapper or implementation.hookwrapper:
                raise PluginError(f"plugin '{name}': '{hook}' is a wrapper, which could stop other plugins")
    for hook in HOOKS:
        if hook not in found and callable(getattr(module, hook, None)):
            raise PluginError(f"plugin '{name}': '{hook}' is not marked; write @moekit.hookimpl above it")
    return found


def _called(function: Callable[[], Any], where: str, expected: str) -> Any:
    """What a hook returns; of an iterable, all of it."""
    try:
        found = function()
        out = found if found is None or isinstance(found, Mapping) else list(found)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where} raised {type(error).__name__}: {error}") from error
    if out is None:
        raise PluginError(f"{where} returned None; expected {expected}")
    return out


def _check_component(offered: Component, where: str) -> None:
    here = _named(offered, "component", where)
    if not isinstance(offered.kind, str) or not offered.kind:
        raise PluginError(f'{here}: it states no kind; write kind="router", for example')
    if isinstance(offered.spec, str):
        _check_import(offered.spec, here, "its spec")
    else:
        check_spec_class(offered.spec, offered.kind, here)
    if not callable(offered.target):
        _check_import(offered.target, here, "its target")


def _check_kind(offered: Kind, where: str) -> None:
    here = _named(offered, "kind", where)
    for field_name in ("spec", "makes", "imports"):
        value = getattr(offered, field_name)
        if not callable(value) and (value or field_name == "spec"):
            _check_import(value, here, f"its {field_name}")


def _check_recipe(offered: RecipeFile, where: str) -> None:
    here = _named(offered, "recipe", where, parts=str(offered.name).split("/"))
    if not hasattr(offered.path, "__fspath__"):
        raise PluginError(f"{here}: its path must be a pathlib.Path, got {offered.path!r}")


def _check_verb(offered: Verb, where: str) -> None:
    here = _named(offered, "verb", where)
    if not isinstance(offered.target, str) or not all(part.isidentifier() for part in offered.target.split(".")):
        raise PluginError(f"{here}: its target must be a module's name, got {offered.target!r}")


def _named(offered: Any, what: str, where: str, parts: Iterable[Any] = ()) -> str:
    """``where`` with the name of what is offered, whose texts are checked.

    Raises:
        PluginError: its name has other characters, or another field that should be text is not.
    """
    here = f"{where}, {what} '{offered.name}'"
    names = list(parts) or [offered.name]
    if not all(isinstance(n, str) and n[:1].isalnum() and n.translate(_SIGNS).isalnum() for n in names):
        raise PluginError(f"{here}: a name is made of letters, digits, '_', '-' and '.'")
    for name in ("summary", "paper", "plural"):
        value = getattr(offered, name, "")
        if not isinstance(value, str):
            raise PluginError(f"{here}: its {name} must be text, got {value!r}")
    return here


def _check_import(target: object, here: str, what: str) -> None:
    if not is_import_string(target):
        raise PluginError(f"{here}: {what} must be 'package.module:Class' or a class, got {target!r}")


def _resolvers(name: str, hooks: Mapping[str, pluggy.HookImpl]) -> dict[str, str]:
    hook = "moekit_resolvers"
    if hook not in hooks:
        return {}
    where = f"plugin '{name}': hook {hook}"
    found = _called(hooks[hook].function, where, "a mapping of names to import strings")
    if not isinstance(found, Mapping):
        raise PluginError(f"{where}: expected a mapping of names to import strings, got {type(found).__name__}")
    for resolver, target in found.items():
        here = f"{where}, resolver '{resolver}'"
        if not isinstance(resolver, str) or not all(part.isidentifier() for part in resolver.split(".")):
            raise PluginError(f"{here}: a name is made of letters, digits, '_' and '.'")
        _check_import(target, here, "it")
    return dict(found)


def _check_distinct(plugin: Plugin) -> None:
    """Each name is offered once, and each spec class by one component."""
    names: set[tuple[str, str]] = set()
    specs: dict[str, Component] = {}
    for offered in offers_of(plugin):
        if (offered.what, offered.name) in names:
            raise PluginError(f"plugin '{plugin.name}': offers {offered.what} '{offered.name}' twice")
        names.add((offered.what, offered.name))
    for component in plugin.components:
        first = specs.setdefault(component.spec_id, component)
        if first is not component:
            raise PluginError(f"plugin '{plugin.name}': {shared_spec(component, first)}")


def offers_of(plugin: Plugin) -> tuple[Offer, ...]:
    """What a plugin offers by name."""
    return (*plugin.components, *plugin.recipes, *plugin.verbs)


def shared_spec(mine: Component, theirs: Component, origin: str = "") -> str:
    """The message about two components with one spec class."""
    whose = f"{theirs}" + (f" ({origin})" if origin else "")
    spec = mine.spec_id.rpartition(":")[2].rpartition(".")[2]
    return f"{mine.kind} '{mine.name}' has the spec class {spec} of {whose}; each needs its own"
