"""Packages that moekit can do without: what needs one says so, with the command that installs it. Torch-free."""

from __future__ import annotations

from importlib.util import find_spec

from moekit.errors import MoekitError


class MissingPackage(MoekitError):
    """A package that moekit does not install by itself, and that is needed here. The message has the command."""


def lacking(*packages: str) -> list[str]:
    """Those of the packages that cannot be imported, by a look at the folders alone."""
    return [name for name in packages if find_spec(name) is None]


def install(extra: str) -> str:
    """The command that installs an extra of moekit."""
    return f"pip install 'moekit[{extra}]'"


def require(extra: str, purpose: str, *packages: str) -> None:
    """Checks that packages can be imported, before work is done for nothing.

    Args:
        extra: of moekit, which installs them.
        purpose: what needs them, as the subject of a sentence: ``the tokenizer 'bpe'``.
        packages: by the names that Python imports.

    Raises:
        MissingPackage: one cannot.
    """
    if missing := lacking(*packages):
        names = " and ".join(missing)
        raise MissingPackage(f"{purpose} needs {names}, which moekit does not install by itself\n  {install(extra)}")
