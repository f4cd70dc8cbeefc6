"""``${data.vocab}``: a value given elsewhere in the spec. OmegaConf resolves it, one leaf at a time."""

from __future__ import annotations

import re
from typing import Any

from moekit.errors import nearest
from moekit.spec.places import Keys, Report, show
from moekit.spec.values import BROKEN

_MISSING_KEY = re.compile(r"Interpolation key '([^']*)' not found")
_REFERENCE = re.compile(r"\$\{\s*(\w+(?:\.\w+)*)\s*\}")


def interpolated(value: Any) -> bool:
    """Whether any text in ``value`` has an interpolation."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, dict):
        return any(interpolated(item) for item in value.values())
    return isinstance(value, list) and any(interpolated(item) for item in value)


def escape(text: str) -> str:
    """Text that resolves to ``text``, with every ``${`` in it literal."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


class Resolver:
    """Resolves the interpolations of one tree.

    Args:
        tree: the whole spec as plain data, with every default filled in.
        report: receives the interpolations that cannot be resolved.
        unread: paths whose mistakes are already in the report; a reference to one of them adds no other.
    """

    def __init__(self, tree: dict[str, Any], report: Report, unread: list[Keys]) -> None:
        self._tree = tree
        self._report = report
        self._unread = [show(path) for path in unread]
        self._unreadable: set[Keys] = set()
        self._config: Any = None

    def resolve(self, value: Any, path: Keys) -> Any:
        """``value`` at ``path`` with its interpolations resolved; ``BROKEN`` if one cannot be."""
        if not interpolated(value):
            return value
        if isinstance(value, dict):
            items = {key: self.resolve(item, (*path, key)) for key, item in value.items()}
            return BROKEN if any(item is BROKEN for item in items.values()) else items
        if isinstance(value, list):
            parts = [self.resolve(item, (*path, i)) for i, item in enumerate(value)]
            return BROKEN if any(part is BROKEN for part in parts) else parts
        return self._leaf(value, path)

    def _leaf(self, value: str, path: Keys) -> Any:
        number = self._number(value)
        if number is not None:
            return number
        from omegaconf import OmegaConf
        from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

        if self._config is None:
            self._config = OmegaConf.create(self._readable(self._tree, ()))
        if path in self._unreadable:
            expected = "'${path.to.option}', or '\\${' for these characters themselves"
            self._report.add(path, f"cannot read the interpolation '{value}'", expected=expected)
            return BROKEN
        try:
            node = self._config
            for key in path:
                node = node[key]
            return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except InterpolationKeyError as error:
            match = _MISSING_KEY.search(str(error))
            missing = match[1] if match else ""
            if not any(missing == top or missing.startswith(f"{top}.") for top in self._unread):
                near = nearest(missing, sorted(_paths(self._tree)))
                self._report.add(path, f"cannot resolve '{value}': '{missing}' does not exist", nearest=near)
        except OmegaConfBaseException as error:
            why = str(error).split("\n", 1)[0]
            self._report.add(path, f"cannot resolve '{value}': {why}")
        return BROKEN

    def _number(self, value: str) -> bool | int | float | None:
        """The number that ``value`` refers to; None where OmegaConf must resolve it. Importing OmegaConf is slow."""
        whole = _REFERENCE.fullmatch(value)
        target: Any = self._tree if whole else None
        for key in whole[1].split(".") if whole else ():
            target = target.get(key) if isinstance(target, dict) else None
        return target if isinstance(target, bool | int | float) else None

    def _readable(self, value: Any, path: Keys) -> Any:
        """``value`` without the leaves that OmegaConf cannot parse: with one of them it rejects the whole tree."""
        from omegaconf import OmegaConf
        from omegaconf.errors import GrammarParseError

        if isinstance(value, dict):
            return {key: self._readable(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._readable(item, (*path, i)) for i, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.create({"text": value})
            except GrammarParseError:
                self._unreadable.add(path)
                return None
        return value


def _paths(tree: dict[str, Any], prefix: str = "") -> set[str]:
    out: set[str] = set()
    for key, value in tree.items():
        out.add(f"{prefix}{key}")
        if isinstance(value, dict):
            out |= _paths(value, f"{prefix}{key}.")
    return out
