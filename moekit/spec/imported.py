"""``{class: package.module.Name, ...}``: a class of another library in a slot, named by its import path. Torch-free.

A spec only holds the path and the arguments. ``moekit.training.run.parts`` imports the class and checks the arguments.
"""

from collections.abc import Iterable
from typing import Any, Final

from moekit.spec.fields import Spec, option

FOREIGN: Final = ("class_path", "_target_")
"""What other tools call ``class``."""


class Imported(Spec):
    """A class named by its import path, and the keyword arguments that it is called with."""

    path: str = option(help="package.module.Name")
    arguments: dict[str, Any] = option({}, "plain values, by the names of the class")

    def check(self) -> Iterable[str]:
        """The path must be one."""
        if not is_import_path(self.path):
            yield f"class: '{self.path}' is not an import path; expected package.module.Name"

    @property
    def name(self) -> str:
        """The name of the class alone."""
        return self.path.rpartition(".")[2]


def is_import_path(path: object) -> bool:
    """Whether ``path`` has the form ``package.module.Name``."""
    return isinstance(path, str) and "." in path and all(part.isidentifier() for part in path.split("."))
