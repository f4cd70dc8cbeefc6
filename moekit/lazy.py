"""Imports the names of a package on first use (PEP 562), for packages whose modules are slow to import."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing would cost `moekit --help` a third of its time
if TYPE_CHECKING:
    from collections.abc import Callable


def from_stub(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of ``package``, whose names its stub lists: ``__init__.pyi``.

    A name is what the stub imports in the form ``from module import name as name``.
    Type checkers and editors read the stub; at run time it is read when the package is imported. The ``__getattr__``
    raises AttributeError for a name that is not in it.

    Args:
        package: ``__name__`` of the package.
        file: ``__file__`` of the package.
    """
    with open(f"{file.rpartition('.')[0]}.pyi", encoding="utf-8") as stub:
        lines = [line.split() for line in stub]
    module_of = {words[3]: words[1] for words in lines if words[:1] == ["from"] and words[4:5] == ["as"]}

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(module_of)
    return get, lambda: sorted({*names, *vars(sys.modules[package])}), names
