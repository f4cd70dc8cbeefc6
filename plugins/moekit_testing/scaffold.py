"""Writes a plugin package from templates: files with ``$name`` and the like, by ``string.Template``.

A template is a folder of ``templates/`` of a plugin's package. Its name is a kind of component, or what else can be
made (``verb``). Over the files of ``package`` it lays those of ``component``, if it is a kind, and its own. In paths,
``PLUGIN`` is the package and ``NAME`` the component; files end in ``.in``, which is removed.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from string import Template

import moekit
from moekit.errors import MoekitError, Problem, UnknownName, nearest
from moekit.registry import Registry

HERE = Path(__file__).parent / "templates"
LISTING = "moekit new --list"
LONGEST = 24
"""Letters of a name: the lines of the templates are formatted for names up to this."""

DESCRIPTIONS: Mapping[str, str] = {
    "LICENSE": "the MIT licence: change it if you like",
    "README.md": "this page",
    "pyproject.toml": "the package: what it needs, and the entry point by which moekit finds it",
    ".github/workflows/test.yml": "what GitHub runs at every push",
    "PLUGIN/__init__.py": "the hooks: what the plugin offers",
    "PLUGIN/spec.py": "the options, and the capabilities that it claims",
    "PLUGIN/module.py": "what it does",
    "PLUGIN/naive.py": "the reference implementation: plain loops from the equation",
    "PLUGIN/verb.py": "its arguments, and what it does",
    "PLUGIN/recipes/NAME.yaml": "a recipe that uses it",
    "tests/test_NAME.py": "tests of its own",
    "tests/test_conformance.py": "the conformance checks of moekit, one test each",
    "tests/test_recipe.py": "the recipe trains",
}
"""What each file of a package is, for its README."""


@dataclass(frozen=True)
class Package:
    """A package that is to be written.

    Attributes:
        kind: what it offers: a kind of component, or the name of another template.
        name: of the component (or verb), and of the plugin.
        module: the name that Python imports.
        folder: where it is written.
    """

    kind: str
    name: str
    folder: Path

    @property
    def module(self) -> str:
        """The name that Python imports."""
        return f"moekit_{self.name}"


def templates(registry: Registry) -> dict[str, Path]:
    """The folder of each template of the installed plugins, by name; of equal names the kit's own."""
    found: dict[str, Path] = {}
    for plugin in registry.plugins:
        package = getattr(sys.modules.get(plugin.module), "__path__", None) if plugin.error is None else None
        for root in package or ():
            folders = (Path(root) / "templates").glob("*/")
            found |= {folder.name: folder for folder in folders if folder.parent != HERE}
    own = {folder.name: folder for folder in HERE.glob("*/") if folder.name not in ("package", "component")}
    return dict(sorted((found | own).items()))


def package(registry: Registry, kind: str, name: str, folder: Path | None) -> Package:
    """Checks a request, before anything is written.

    Args:
        registry: the installed plugins.
        kind: a template.
        name: of the component, in lower case with underscores.
        folder: where it is written; None for ``moekit-name`` here.

    Raises:
        MoekitError: there is no such template, the name cannot be used, or the folder is not empty.
    """
    known = templates(registry)
    singular = {each.plural: each.name for each in registry.kinds.values()}
    kind = singular.get(kind, kind)
    if kind not in known:
        raise UnknownName(
            Problem(what=f"no template is named '{kind}'", nearest=nearest(kind, [*known]), list_with=LISTING)
        )
    made = Package(kind, name, folder or Path(f"moekit-{name.replace('_', '-')}"))
    if why := _unusable(registry, made):
        raise MoekitError(f"{kind} cannot be called '{name}': {why}")
    if made.folder.exists() and (not made.folder.is_dir() or any(made.folder.iterdir())):
        raise MoekitError(f"'{made.folder}' exists and is not empty\n  write elsewhere: --to DIR")
    return made


def write(made: Package, registry: Registry) -> list[str]:
    """Writes the package; returns the paths of its files, sorted."""
    sources = _sources(made, registry)
    paths = {_path(source, made): source.removesuffix(".in") for source in sorted(sources)}
    rows = "\n".join(f"| `{path}` | {DESCRIPTIONS.get(of, '')} |" for path, of in paths.items() if "py.typed" not in of)
    words = _words(made) | {"files": rows}
    for path, source in paths.items():
        target = made.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        text = sources[f"{source}.in"].read_text(encoding="utf-8")
        target.write_text(Template(text).substitute(words), encoding="utf-8")
    return list(paths)


def _sources(made: Package, registry: Registry) -> dict[str, Path]:
    """The template of each file, by its path in the template."""
    layers = [HERE / "package", *([HERE / "component"] if made.kind in registry.kinds else [])]
    found: dict[str, Path] = {}
    for layer in (*layers, templates(registry)[made.kind]):
        found |= {path.relative_to(layer).as_posix(): path for path in sorted(layer.rglob("*.in"))}
    return found


def _path(source: str, made: Package) -> str:
    return source.removesuffix(".in").replace("PLUGIN", made.module).replace("NAME", made.name)


def _words(made: Package) -> dict[str, str]:
    title = made.name.replace("_", " ")
    major, minor = moekit.__version__.split(".")[:2]
    following = f"0.{int(minor) + 1}" if major == "0" else str(int(major) + 1)
    return {
        "name": made.name,
        "module": made.module,
        "kind": made.kind,
        "Class": _class(made.name),
        "dashed": made.name.replace("_", "-"),
        "title": title[0].upper() + title[1:],
        "summary": f"what the {made.kind} {title} does, in one line",
        "range": f">={major}.{minor},<{following}",
        "year": str(date.today().year),
    }


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _unusable(registry: Registry, made: Package) -> str:
    """Why a name cannot be used; empty if it can."""
    name, cls = made.name, _class(made.name)
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        fixed = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        hint = f"; did you mean '{fixed}'?" if fixed != name and fixed.isidentifier() else ""
        return f"expected lower-case letters, digits and underscores{hint}"
    if not 2 <= len(name) <= LONGEST:
        return f"it has {len(name)} letters; expected 2 to {LONGEST}"
    sources = [path.read_text(encoding="utf-8") for path in _sources(made, registry).values()]
    if any(re.search(rf"^(from|import) .*\b{cls}(Spec)?\b", text, re.MULTILINE) for text in sources):
        return f"its class would be called {cls}, as one that it imports"
    if any(plugin.name == name for plugin in registry.plugins) or importlib.util.find_spec(made.module) is not None:
        return f"a plugin or module '{made.module}' is installed already; see: moekit plugins"
    taken = [o for o in (*registry.components(), *registry.recipes, *registry.verbs) if o.name == name]
    return f"it is that of {taken[0]} of {registry.origin(taken[0])}" if taken else ""
