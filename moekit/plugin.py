"""``Plugin``, and the checks of a plugin when it is loaded: its API version, its hooks, and each thing that it offers.

Loading imports neither torch nor any spec that is named by an import string.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from types import ModuleType
from typing import Any

import pluggy

from moekit import hookspecs
from moekit.component import (
    API_VERSION,
    DOTTED,
    IMPORT_STRING,
    Component,
    Kind,
    Offer,
    RecipeFile,
    Verb,
    check_spec_class,
    import_string,
)
from moekit.errors import PluginError, nearest
from moekit.spec.fields import Record

OFFERED = {"components": Component, "kinds": Kind, "recipes": RecipeFile, "verbs": Verb, "resolvers": dict}
"""What the hooks ``moekit_components`` and so on return lists of; ``moekit_resolvers`` returns a mapping."""

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("moekit_"))
"""The hooks in ``hookspecs``: first those that say what a plugin offers, then those that a run calls, in this order."""

_NAME = re.compile(r"[^\W_][\w.-]*")
_PATH = re.compile(rf"{_NAME.pattern}(?:/{_NAME.pattern})*")  # of a recipe: folder/name
_IMPORTABLE = "must be 'package.module:Class' or a class"


class Plugin(Record):
    """One plugin, loaded or failed.

    Attributes:
        name: the name of its entry point.
        module: the module that the entry point names.
        distribution, version: the installed package that it belongs to; empty for one added by ``temporary``.
        api: the API version that it states; None if it states none or could not be imported.
        components, kinds, recipes, verbs, resolvers: what it offers.
        specs: its components by the import string of their spec classes: a spec is built by its class.
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
    specs: Mapping[str, Component] = field(default_factory=dict)
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


def load_plugin(name: str, module: Any, *, distribution: str = "", version: str = "", seconds: float = 0.0) -> Plugin:
    """Checks a plugin and collects what it offers.

    Args:
        name: the plugin's name.
        module: an imported module, or any object with the same attributes.
        distribution, version: the installed package that it belongs to, for messages.
        seconds: how long its import took.

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
    offers: dict[str, Any] = {
        what: _offered(hooks[hook], f"plugin '{name}': hook {hook}", cls, name)
        for what, cls in OFFERED.items()
        if (hook := f"moekit_{what}") in hooks
    }
    named: set[tuple[str, str]] = set()
    for offer in (each for what in ("components", "recipes", "verbs") for each in offers.get(what, ())):
        if (offer.kind, offer.name) in named:
            raise PluginError(f"plugin '{name}': offers {offer.kind} '{offer.name}' twice")
        named.add((offer.kind, offer.name))
    specs: dict[str, Component] = {}
    for component in offers.get("components", ()):
        spec = component.spec if isinstance(component.spec, str) else import_string(component.spec)
        if (first := specs.setdefault(spec, component)) is not component:
            raise PluginError(f"plugin '{name}': {shared_spec(component, first)}")
    return Plugin(
        name=name, module=getattr(module, "__name__", type(module).__name__), distribution=distribution,
        version=version, api=api, seconds=seconds, **offers, specs=specs,
        hooks={hook: each for hook, each in hooks.items() if hook.removeprefix("moekit_") not in OFFERED},
    )  # fmt: skip


@cache
def _manager() -> pluggy.PluginManager:
    """It knows the arguments of every hook, and calls none: ``Registry.call`` guards the hook of each plugin."""
    manager = pluggy.PluginManager("moekit")
    manager.add_hookspecs(hookspecs)
    return manager


def _hooks(name: str, module: Any) -> dict[str, pluggy.HookImpl]:
    """The hooks that a module implements, checked by pluggy and for mistakes that pluggy does not report."""
    names = vars(module) if isinstance(module, ModuleType) else dir(module)  # none that is imported on first use
    given = {each: getattr(module, each) for each in names}
    marked = ModuleType(name)
    vars(marked).update({each: value for each, value in given.items() if hasattr(value, "moekit_impl")})
    manager = _manager()
    try:
        manager.register(marked, name)
        callers = manager.get_hookcallers(marked) or []
        found = {caller: next(i for i in caller.get_hookimpls() if i.plugin is marked) for caller in callers}
    except pluggy.PluginValidationError as error:
        said = " ".join(str(error).splitlines()[1:])
        raise PluginError(f"plugin '{name}': {said or error}") from error
    finally:
        if manager.is_registered(marked):
            manager.unregister(marked)
    for caller, implementation in found.items():
        if not caller.has_spec() and not implementation.optionalhook:
            near = nearest(caller.name, HOOKS)
            hint = f"did you mean '{near}'?" if near else f"hooks are {', '.join(HOOKS)}"
            raise PluginError(f"plugin '{name}': unknown hook '{caller.name}'; {hint}")
        if implementation.wrapper or implementation.hookwrapper:
            raise PluginError(f"plugin '{name}': '{caller.name}' is a wrapper, which could stop other plugins")
    for hook in HOOKS:
        if callable(given.get(hook)) and not hasattr(marked, hook):
            raise PluginError(f"plugin '{name}': '{hook}' is not marked; write @moekit.hookimpl above it")
    return {caller.name: implementation for caller, implementation in found.items() if caller.has_spec()}


def _offered(hook: pluggy.HookImpl, where: str, cls: type[Any], plugin: str) -> Any:
    """What a hook returns, as offers of the plugin, completed by what follows from their other fields.

    Raises:
        PluginError: it raised, or an offer is not a ``cls``, or its name or a field is not what it should be.
    """
    expected = "a mapping of names to import strings" if cls is dict else f"a list of {cls.__name__}"
    try:
        found: Any = hook.function()
        returned = found if found is None or isinstance(found, Mapping) else list(found)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where} raised {type(error).__name__}: {error}") from error
    if returned is None:
        raise PluginError(f"{where} returned None; expected {expected}")
    if cls is dict:
        return _resolvers(returned, where, expected)
    checked: list[Offer | Kind] = []
    pattern = _PATH if cls is RecipeFile else _NAME
    for offer in returned:
        if not isinstance(offer, cls):
            raise PluginError(f"{where}: expected {cls.__name__}, got {type(offer).__name__}")
        here = f"{where}, {'recipe' if cls is RecipeFile else cls.__name__.lower()} '{offer.name}'"
        if not isinstance(offer.name, str) or not pattern.fullmatch(offer.name):
            raise PluginError(f"{here}: a name is made of letters, digits, '_', '-' and '.'")
        for name in ("summary", "paper", "plural"):
            if not isinstance(text := getattr(offer, name, ""), str):
                raise PluginError(f"{here}: its {name} must be text, got {text!r}")
        completed = {"plugin": plugin}
        named: dict[str, object] = {}
        match offer:
            case Component():
                if not isinstance(offer.kind, str) or not offer.kind:
                    raise PluginError(f'{here}: it states no kind; write kind="router", for example')
                if not isinstance(offer.spec, str):
                    check_spec_class(offer.spec, offer.kind, here)
                named = {"spec": offer.spec, "target": offer.target}
            case Kind():
                completed["plural"] = offer.plural or f"{offer.name}s"
                named = {"spec": offer.spec, "makes": offer.makes or object, "imports": offer.imports or object}
            case Verb() if not isinstance(offer.target, str) or not DOTTED.fullmatch(offer.target):
                raise PluginError(f"{here}: its target must be a module's name, got {offer.target!r}")
            case RecipeFile() if not isinstance(offer.path, os.PathLike):
                raise PluginError(f"{here}: its path must be a pathlib.Path, got {offer.path!r}")
        for name, value in named.items():
            if not callable(value) and not (isinstance(value, str) and IMPORT_STRING.fullmatch(value)):
                raise PluginError(f"{here}: its {name} {_IMPORTABLE}, got {value!r}")
        made: Offer | Kind = copy.copy(offer)
        vars(made).update(completed)  # quicker than dataclasses.replace, which would check it again
        checked.append(made)
    return tuple(checked)


def _resolvers(returned: Any, where: str, expected: str) -> dict[str, str]:
    if not isinstance(returned, Mapping):
        raise PluginError(f"{where}: expected {expected}, got {type(returned).__name__}")
    for name, target in returned.items():
        here = f"{where}, resolver '{name}'"
        if not isinstance(name, str) or not DOTTED.fullmatch(name):
            raise PluginError(f"{here}: a name is made of letters, digits, '_' and '.'")
        if not isinstance(target, str) or not IMPORT_STRING.fullmatch(target):
            raise PluginError(f"{here}: it {_IMPORTABLE}, got {target!r}")
    return dict(returned)


def shared_spec(mine: Component, theirs: Component, origin: str = "") -> str:
    """The message about two components with one spec class."""
    whose = f"{theirs}" + (f" ({origin})" if origin else "")
    spec = str(getattr(mine.spec, "__qualname__", mine.spec)).rpartition(":")[2].rpartition(".")[2]
    return f"{mine.kind} '{mine.name}' has the spec class {spec} of {whose}; each needs its own"
