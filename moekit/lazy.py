"""Imports the names of a package on first use (PEP 562), for packages whose modules are slow to import."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would cost `moekit --help` a third of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def imports_in(file: str) -> dict[str, str]:
    """The module of each name that ``file`` imports in the form ``from module import name as name``.

    A package lists its names once, below ``if TYPE_CHECKING:``, where type checkers read them.
    """
    with open(file, encoding="utf-8") as source:
        lines = [line.split() for line in source]
    return {words[3]: words[1] for words in lines if words[:1] == ["from"] and words[4:5] == ["as"]}


def lazy_exports(
    package: str, module_of: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of ``package``; ``module_of`` maps each name to its module.

    The ``__getattr__`` raises AttributeError for any other name.
    """

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib
        import sys

        value = getattr(importlib.import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(module_of)
    return get, lambda: names, names
