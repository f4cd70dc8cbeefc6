"""What a plugin offers: ``Component``, ``Kind``, ``RecipeFile`` and ``Verb``. Plain data.

Classes are named by import strings (``"package.module:Class"``), so that finding plugins imports neither torch nor
the specs of components that are not used.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Any

from moekit.errors import PluginError
from moekit.spec.fields import Record, check_declaration

API_VERSION = 2
"""Version of the plugin API. A plugin states the version that it was written for: ``MOEKIT_API = 2``."""

Importable = str | Callable[..., Any]
"""A class or function, or its import string: ``"package.module:name"``."""

DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
"""``package.module``: Python names, joined by dots."""

IMPORT_STRING = re.compile(rf"{DOTTED.pattern}:[^\W\d]\w*")
"""``package.module:name``."""


class Kind(Record):
    """A kind of component, such as ``router``. A plugin can add its own.

    Args:
        name: singular, as in ``slot("router")``.
        spec: base class of the specs of this kind.
        summary: one line: what a component of this kind does.
        context: names of what a target is called with, after its spec.
        makes: base class of what a target makes; empty for any.
        plural: as in ``moekit ls routers``; the name with an s, when the plugin is loaded, if not given.
        checks: module of the conformance checks of this kind; moekit_testing has those of moekit's own kinds.
        imports: base class of the classes that ``class: package.module.Name`` may name in a slot; empty for none.
        plugin: name of the plugin that offers it; set when the plugin is loaded.
    """

    name: str
    spec: Importable
    summary: str = ""
    context: tuple[str, ...] = ()
    makes: Importable = ""
    plural: str = ""
    checks: str = ""
    imports: Importable = ""
    plugin: str = ""

    @property
    def spec_class(self) -> Any:
        """The base class of its specs.

        Raises:
            PluginError: it cannot be imported.
        """
        return imported(self.spec, f"kind '{self.name}'", "its spec")


class Offer(Record):
    """What a plugin offers under a name, which another plugin may offer too."""

    name: str
    plugin: str = ""

    @property
    def kind(self) -> str:
        """What it is, as messages say it: a component's kind, ``recipe`` or ``verb``."""
        raise NotImplementedError

    @property
    def full_name(self) -> str:
        """``plugin/name``: unambiguous where two plugins offer the same name."""
        return f"{self.plugin}/{self.name}" if self.plugin else self.name

    def __str__(self) -> str:
        return f"{self.kind} '{self.full_name}'"


class Component(Offer):
    """One named thing that a plugin offers.

    Args:
        name: the name after ``use:`` in a spec.
        spec: the class of its options, a subclass of the spec of its kind; or its import string.
        target: the class or function that builds it, or its import string.
        summary: one line for ``moekit ls``.
        kind: its kind; may be omitted where ``spec`` is a class, which states it.
        paper: the source of the idea.
        default: whether it fills a slot of its kind that has ``default="kind"`` and is not given.
        known_failures: conformance checks that it fails, with the reason: ``{"check_compile": "why"}``.
        plugin: name of the plugin that offers it; set when the plugin is loaded.
    """

    spec: Importable
    target: Importable
    summary: str
    kind: str = ""
    paper: str = ""
    default: bool = False
    known_failures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.kind and not isinstance(self.spec, str):
            object.__setattr__(self, "kind", getattr(self.spec, "kind", ""))

    @cached_property
    def spec_class(self) -> Any:
        """The class of its options, imported if necessary, and checked.

        Raises:
            PluginError: it cannot be imported, or it is not a spec class of this kind.
        """
        spec = imported(self.spec, self, "its spec")
        check_spec_class(spec, self.kind, self)
        if isinstance(self.spec, str) and self.spec != (defined := f"{spec.__module__}:{spec.__qualname__}"):
            raise PluginError(f"{self}: its spec '{self.spec}' is defined as '{defined}'; name that")
        return spec

    def load(self) -> Any:
        """The target, imported if necessary.

        Raises:
            PluginError: the target cannot be imported.
        """
        return imported(self.target, self, "its target")


class RecipeFile(Offer):
    """A YAML file that a plugin offers under a name.

    Args:
        name: what ``moekit train`` takes; ``folder/name`` for a file in a folder.
        path: the file.
        plugin: name of the plugin that offers it; set when the plugin is loaded.
    """

    kind = "recipe"
    path: Path


def recipes_in(folder: Path) -> list[RecipeFile]:
    """Every ``*.yaml`` file below ``folder``, named by its relative path without the suffix."""
    start, end = len(os.path.join(folder, "")), -len(".yaml")
    files = [os.path.join(here, name) for here, _, names in os.walk(folder) for name in names if name.endswith(".yaml")]
    return [RecipeFile(name=file[start:end].replace(os.sep, "/"), path=Path(file)) for file in sorted(files)]


class Verb(Offer):
    """A verb of the command line: ``moekit NAME``.

    Args:
        name: the verb.
        target: a module with ``EXAMPLES``, ``add_arguments(parser)`` and ``run(args) -> int``, imported when used.
        summary: one line for ``moekit help``.
        plugin: name of the plugin that offers it; set when the plugin is loaded.
    """

    kind = "verb"
    target: str
    summary: str


def imported(what: Importable, owner: object, role: str = "") -> Any:
    """The class or function that an import string names; anything else as it is.

    Raises:
        PluginError: it cannot be imported. The message names its owner, and what it is to the owner.
    """
    if not isinstance(what, str):
        return what
    module, _, name = what.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        said = f"{owner}: cannot import {role}".rstrip()
        raise PluginError(f"{said} '{what}'\n  {type(error).__name__}: {error}") from error


def import_string(what: Any) -> str:
    """The import string of a class or function: ``package.module:Class``."""
    return f"{what.__module__}:{what.__qualname__}"


def check_spec_class(spec: Any, kind: str, here: object) -> None:
    """Checks that ``spec`` declares options of components of ``kind``.

    Raises:
        PluginError: it does not. The message begins with ``here``.
    """
    if not isinstance(spec, type) or getattr(spec, "kind", None) != kind:
        got = getattr(spec, "__name__", repr(spec))
        raise PluginError(f"{here}: its spec must be a subclass of the spec of kind '{kind}', got {got}")
    try:
        check_declaration(spec)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{here}: {error}") from error
