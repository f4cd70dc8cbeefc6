"""``${data.vocab}``: a value given elsewhere in the spec. OmegaConf resolves it; what it cannot resolve is reported."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import cached_property, lru_cache
from typing import Any

import omegaconf
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, InterpolationToMissingValueError

from moekit.component import imported
from moekit.errors import PluginError, nearest
from moekit.registry import Registry
from moekit.spec.tree import BROKEN, LEFT_OPEN, MAX_DEPTH, MAX_NODES, Keys, Report, is_reference, reject, show

MAX_STEPS = 2_000
"""References that one spec may follow, those that lead to others counted again for each. A recipe follows two."""

MAX_TEXT = 4_000
"""Characters of a text with interpolations. Parsing them takes OmegaConf a second for each 20,000."""

_KEY = r"[\w-]+(?:\.[\w-]+|\[\d+\])*"
_TARGET = re.compile(rf"\$\{{\s*(\.*)({_KEY})\s*\}}")
_MISSING_KEY = re.compile(r"Interpolation key '([^']*)' not found(?: \(resolved to '([^']*)'\))?")


@lru_cache
def is_readable(text: str) -> bool:
    """Whether OmegaConf can parse the interpolations in a text, and in less than a second."""
    try:
        return len(text) <= MAX_TEXT and OmegaConf.create({"text": text}) is not None
    except (GrammarParseError, RecursionError):
        return False


def escape(text: str) -> str:
    """Text that resolves to ``text``, with every ``${`` in it literal."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def register_resolver(name: str, function: Callable[..., Any]) -> None:
    """Makes ``${name:...}`` call ``function``, in place of an earlier resolver of that name."""
    old = omegaconf.__version__.startswith("2.3.")  # which has another function of the newer name
    register = OmegaConf.register_new_resolver if old else OmegaConf.register_resolver
    register(name, function, replace=True)


def register_plugins_resolvers(registry: Registry) -> None:
    """Registers the resolvers that plugins offer. An exception in one of them names the plugin."""
    for name, (plugin, target) in registry.resolvers.items():
        if _REGISTERED.get(name) != target:
            register_resolver(name, _named_resolver(name, plugin, target))
            _REGISTERED[name] = target


_REGISTERED: dict[str, str] = {}  # OmegaConf's own table of resolvers is one for the whole process, too


def _named_resolver(name: str, plugin: str, target: str) -> Callable[..., Any]:
    here = f"resolver '{name}' of plugin '{plugin}'"

    def resolve(*arguments: Any) -> Any:
        function = imported(target, here)
        try:
            return function(*arguments)
        except Exception as error:
            raise PluginError(f"{here}: {type(error).__name__}: {error}") from error

    return resolve


class References:
    """Resolves the interpolations of one tree.

    Args:
        tree: what they refer to: a config, or plain data of which a config is made when the first is resolved.
        report: receives the interpolations that cannot be resolved.
        if_open: what a reference to a value that is left open (``???``) gives.
    """

    def __init__(self, tree: DictConfig | dict[str, Any], report: Report, if_open: Any = BROKEN) -> None:
        self._tree = tree
        self._report = report
        self._if_open = if_open
        self._targets: dict[Keys, list[Keys]] = {}
        self._nearest = {"": ""}  # for a key that does not exist
        self._open: list[tuple[Keys, str]] = []
        self._steps_of: dict[Keys, int] = {}
        self._steps = 0
        self._count = 0

    @cached_property
    def _config(self) -> Any:
        return OmegaConf.create(self._tree) if isinstance(self._tree, dict) else self._tree

    def config_at(self, path: Keys) -> Any:
        """The node at a path, none of whose parents is an interpolation."""
        node = self._config
        for key in path:
            node = node[key]
        return node

    def renew(self) -> None:
        """The plain data has changed."""
        vars(self).pop("_config", None)

    def put(self, path: Keys, value: Any) -> None:
        """The plain data has changed at ``path`` alone."""
        if "_config" in vars(self):
            self.config_at(path[:-1])[path[-1]] = value

    def value(self, config: Any, key: str | int, written: Any, path: Keys) -> Any:
        """``config[key]`` as plain data, every interpolation in it resolved; ``BROKEN`` if one cannot be.

        Args:
            config: the node of the tree that holds the value.
            key: the value's key or index there.
            written: the value as plain data, not resolved.
            path: path of the value in the spec.

        Raises:
            SpecError: the references repeat values without end.
        """
        if is_reference(written):
            found = self.follow(config, key, written, path)
            if isinstance(found, str) or not OmegaConf.is_config(found):
                return found
            config, written = found, OmegaConf.to_container(found)
        elif isinstance(written, dict | list):
            config = config[key]
        else:
            return written
        self.count(len(written), path)
        if isinstance(written, dict):
            named = {name: self.value(config, name, item, (*path, name)) for name, item in written.items()}
            return BROKEN if any(item is BROKEN for item in named.values()) else named
        items = [self.value(config, i, item, (*path, i)) for i, item in enumerate(written)]
        return BROKEN if any(item is BROKEN for item in items) else items

    def follow(self, config: Any, key: str | int, text: str, path: Keys) -> Any:
        """What ``text``, an interpolation at ``config[key]``, refers to; ``BROKEN`` if it cannot be resolved."""
        targets = self._targets[path] = _targets(text, path)
        self._count_steps(targets, path)
        try:
            return config[key]
        except InterpolationToMissingValueError:
            self._open.append((path, text))
            return self._if_open
        except InterpolationKeyError as error:
            match = _MISSING_KEY.search(str(error))
            whole = _TARGET.fullmatch(text.strip())
            missing = show(targets[0]) if whole else (match[2] or match[1]) if match else ""
            why = f"'{missing}' does not exist" if missing else _first_line(error)
            if missing not in self._nearest:
                self._nearest[missing] = nearest(missing, sorted(_paths(self._written)))
            self._report.add(path, f"cannot resolve '{text}': {why}", nearest=self._nearest[missing])
        except Exception as error:  # a resolver may raise anything
            self._report.add(path, f"cannot resolve '{text}': {_first_line(error)}")
        return BROKEN

    def report_open(self) -> None:
        """Reports the references to open values: for a report that says nothing of these values themselves."""
        for path, text in self._open:
            self._report.add(path, f"cannot resolve '{text}': it is left open ('{LEFT_OPEN}')")

    def count(self, new: int, path: Keys) -> None:
        """Counts values that references repeat.

        Raises:
            SpecError: they are too many, or nested too deeply.
        """
        self._count += new
        if len(path) > MAX_DEPTH or self._count > MAX_NODES:
            what = f"references repeat more than {MAX_NODES:,} values, or without end"
            reject(what, at=path[:MAX_DEPTH], place=self._report.place(path))

    def _count_steps(self, targets: list[Keys], path: Keys) -> None:
        """Counts the references that OmegaConf follows to resolve one, before it does: they may double at each step."""
        try:
            self._steps += sum(1 + self._steps_to(target) for target in targets)
        except RecursionError:
            self._steps = MAX_STEPS + 1
        if self._steps > MAX_STEPS:
            what = f"references refer to others more than {MAX_STEPS:,} times"
            reject(what, at=path, place=self._report.place(path))

    def _steps_to(self, path: Keys) -> int:
        """How many references must be followed to read the value at ``path``."""
        if path not in self._steps_of:
            self._steps_of[path] = 0  # of a circle, which OmegaConf reports
            node = self._written
            for end, key in enumerate(path, 1):
                inside = isinstance(node, dict) or (isinstance(node, list) and isinstance(key, int) and key < len(node))
                node = (node.get(key) if isinstance(node, dict) else node[key]) if inside else None
                if is_reference(node):
                    targets = [(*target, *path[end:]) for target in _targets(node, path[:end])]
                    self._steps_of[path] = sum(1 + self._steps_to(target) for target in targets)
                    break
        return self._steps_of[path]

    @cached_property
    def _written(self) -> Any:
        return self._tree if isinstance(self._tree, dict) else OmegaConf.to_container(self._tree)

    def is_news(self, path: Keys, problems: Collection[Keys]) -> bool:
        """Whether the problem at ``path`` is its own: no value that it refers to has one. ``problems``: all paths."""
        seen: set[Keys] = set()
        waiting = [path]
        while waiting and len(seen) < MAX_NODES:
            for target in self._targets_of(waiting.pop()):
                if target == path:
                    return True  # a circle: every member is reported
                if target not in seen and len(target) <= MAX_DEPTH:
                    seen.add(target)
                    waiting.append(target)
        return not any(self._is_broken(target, problems) for target in seen)

    @staticmethod
    def _is_broken(path: Keys, problems: Collection[Keys]) -> bool:
        """Whether the value at ``path`` has a problem, or is in a component whose name has one."""
        return path in problems or any((*path[:end], "use") in problems for end in range(len(path) + 1))

    def _targets_of(self, path: Keys) -> list[Keys]:
        """The paths that the value at ``path`` repeats: it, or a part that contains it, is a reference."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._targets:
                return [(*target, *path[end:]) for target in self._targets[path[:end]]]
        return []


def _targets(text: str, path: Keys) -> list[Keys]:
    """The paths that the references in ``text`` mean.

    A leading dot is the mapping that contains ``path``, two dots the one above.
    """
    out: list[Keys] = []
    for dots, keys in _TARGET.findall(text):
        start = path[: max(0, len(path) - len(dots))] if dots else ()
        out.append((*start, *(int(key) if key.isdigit() else key for key in re.findall(r"[\w-]+", keys))))
    return out


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300] or type(error).__name__


def _paths(tree: Any, prefix: str = "") -> set[str]:
    out: set[str] = set()
    for key, value in tree.items() if isinstance(tree, dict) else ():
        out |= {f"{prefix}{key}", *_paths(value, f"{prefix}{key}.")}
    return out
