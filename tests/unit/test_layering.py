"""The shape of the project, checked on its own source: who may import whom, what imports no torch, how long a file is,
where oracles stand, what is documented, what tensors are called.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from moekit import contracts
from moekit.component import Component
from moekit.registry import current
from moekit.spec import kinds
from moekit.spec.fields import Spec, fields_of, types_of
from moekit.spec.recipe import Recipe

ROOT = Path(__file__).parents[2]
CORE = ROOT / "moekit"
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").is_file())
FILES = sorted(path for folder in (CORE, *PLUGINS) for path in folder.rglob("*.py"))

LONG: dict[str, str] = {
    "moekit/checkpoints/writing.py": "one protocol: who writes what, and every stage of a save, in order",
    "moekit/contracts/layer.py": "the contracts of a layer, side by side",
    "moekit/shards/shard.py": "what a rank holds of a tensor, a model and an optimizer",
    "moekit/training/health/diagnosis.py": "one search for the part to blame, forward and backward",
    "moekit/training/module.py": "one class: everything that Lightning calls on LitMoE",
}
"""Files of more than 250 lines, each with the reason."""

NO_ORACLE = {
    "moekit_data": "reads files; there is no equation",
    "moekit_optimizers": "torch's own, but for adafactor; schedules are closed forms, tested at their corners",
    "moekit_dispatchers/loop": "is the oracle of the other dispatchers, and has one of its own in tests",
    "moekit_dispatchers/auto": "chooses among the others",
    "moekit_dispatchers/fused": "its oracle is the loop dispatcher beside it",
    "moekit_dispatchers/grouped": "its oracle is the loop dispatcher beside it",
    "moekit_dispatchers/triton": "its oracle is the loop dispatcher beside it",
    "moekit_models/mixture": "one MoELayer, whose parts have oracles",
    "moekit_models/mlp": "two linear layers of torch",
    "moekit_objectives/squared_error": "one line of torch",
}
"""Rooms, or whole plugins, without a ``naive.py``, each with the reason."""

TORCH_FREE = (
    *("moekit", "moekit.component", "moekit.discovery", "moekit.errors", "moekit.hookspecs", "moekit.plugin"),
    *("moekit.registry", "moekit.spec", "moekit.cli"),
)


def relative(path: Path) -> str:
    """``moekit/layer.py``; files of plugins without the folder ``plugins``."""
    return path.relative_to(ROOT if path.is_relative_to(CORE) else ROOT / "plugins").as_posix()


def module_name(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, top: bool = False) -> Iterator[str]:
    """Every module that a file imports, relative imports resolved; with ``top``, only when it is itself imported.

    What it takes from a module is named below it, for that may be a module too.
    """
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in tree(path).body if top else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))


def modules() -> list[str]:
    """Every module of the project; ``moekit.__main__`` is a command and runs when imported."""
    return [module_name(path) for path in FILES if path.name != "__main__.py"]


def import_alone(names: list[str], preload: list[str]) -> dict[str, tuple[str, list[str]]]:
    script = Path(__file__).with_name("import_alone.py")
    command = [sys.executable, str(script), ",".join(preload), ",".join(names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, tuple[str, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_core_imports_no_plugin() -> None:
    wrong = [
        (relative(p), name) for p in FILES if p.is_relative_to(CORE) for name in imports(p) if name[:7] == "moekit_"
    ]
    assert wrong == []


def test_plugins_import_no_other_plugin() -> None:
    wrong = [
        (relative(path), name)
        for plugin in PLUGINS
        for path in plugin.rglob("*.py")
        for name in imports(path)
        if name.startswith("moekit_") and name.partition(".")[0] != plugin.name
    ]
    assert wrong == []


def test_an_oracle_imports_nothing_of_its_plugin() -> None:
    oracles = [path for path in FILES if path.name == "naive.py"]
    assert oracles
    assert [(relative(p), name) for p in oracles for name in imports(p) if name.startswith("moekit_")] == []


def test_torch_free_rooms_import_no_torch() -> None:
    """Plugins and their rooms hold specs in ``__init__``; so do the registry, specs and verbs of the core."""
    rooms = [p.parent for plugin in PLUGINS for p in plugin.rglob("module.py")]
    names = [module_name(plugin / "__init__.py") for plugin in PLUGINS]
    names += [module_name(room / "__init__.py") for room in rooms]
    names += [m for m in modules() if m in TORCH_FREE or m.startswith(("moekit.spec.", "moekit.cli."))]
    found = import_alone(names, preload=[])
    assert {name: answer for name, answer in found.items() if answer != ["", []]} == {}
    assert len(found) > 60


def test_nothing_imports_in_a_circle() -> None:
    """So it is no matter what is imported first."""
    names = {module_name(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        taken = {other for other in imports(path, top=True) if other in names}
        around = {
            other for other in taken if name.startswith(f"{other}.") and any(t.startswith(f"{other}.") for t in taken)
        }
        graph[name] = taken - around - {name}  # a module may take others from the package that both are in
    assert sum(len(others) for others in graph.values()) > 3 * len(graph)
    TopologicalSorter(graph).prepare()  # a circle is told, and with it who is in it


@pytest.mark.slow
def test_every_module_imports_alone() -> None:
    roots = {name.partition(".")[0] for path in FILES for name in imports(path, top=True)}
    libraries = sorted(r for r in roots if r and not r.startswith("moekit") and r not in sys.stdlib_module_names)
    found = import_alone(modules(), preload=libraries)
    assert {name: error for name, (error, _) in found.items() if error} == {}
    assert len(found) == len(modules())


def test_no_file_is_long() -> None:
    long = {relative(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 250}
    assert {name: n for name, n in long.items() if name not in LONG} == {}
    assert set(LONG) <= set(long), "listed as long without need"


def test_every_room_has_its_oracle() -> None:
    rooms = [p.parent for plugin in PLUGINS for p in plugin.rglob("module.py")]
    bare = {relative(room) for room in rooms if not (room / "naive.py").is_file()}
    assert {room for room in bare if room not in NO_ORACLE and room.partition("/")[0] not in NO_ORACLE} == set()
    assert {name for name in NO_ORACLE if not any(f"{room}/".startswith(f"{name}/") for room in bare)} == set()


def public(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public functions and classes, and the public methods of these, with what holds the docstring."""
    yield "module", tree(path)
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


def test_every_public_name_has_a_docstring() -> None:
    bare = [f"{relative(p)}: {name}" for p in FILES for name, node in public(p) if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert bare == []


def legend() -> set[str]:
    """The letters of the table in docs/conventions.md: the one legend of the project."""
    text = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| ([A-Za-z]) \|", text, flags=re.MULTILINE))


def stored_names(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def test_tensor_names_end_in_letters_of_the_legend() -> None:
    letters = legend()
    assert set("BSTDHOEKGCPNVX") <= letters
    suffix = re.compile(r"_*[a-z][a-z0-9_]*_([A-Z][A-Za-z]*)")
    wrong = {
        f"{relative(path)}: {name}"
        for path in FILES
        for name in stored_names(path)
        if (match := suffix.fullmatch(name)) and set(match[1]) - letters
    }
    assert wrong == set()


def subclasses(base: type) -> Iterator[type]:
    for sub in base.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_classes_are_abstract_or_final() -> None:
    """Nothing concrete is subclassed: what two components share is an abstract class or a function."""
    for component in current().components():
        if component.spec is not Recipe:
            component.load()
    promises = [
        c for c in vars(contracts).values() if inspect.isclass(c) and c.__module__.startswith(contracts.__name__)
    ]
    ours = {c for base in promises for c in subclasses(base) if c.__module__.startswith("moekit")}
    assert len(ours) > 20
    wrong = [
        f"{c.__qualname__} subclasses the concrete {base.__qualname__}"
        for c in ours
        for base in c.__bases__
        if base in ours and base not in promises and not inspect.isabstract(base)
    ]
    assert wrong == []


def specs() -> dict[str, type[Spec]]:
    """Spec classes of every component and kind, and the groups inside them, by name."""
    found: dict[str, type[Spec]] = {}

    def add(spec: type[Spec]) -> None:
        if spec.__qualname__ not in found:
            found[spec.__qualname__] = spec
            for name, info in fields_of(spec).items():
                if info.kind == "group":
                    hint: Any = types_of(spec)[name]
                    add(hint if inspect.isclass(hint) else next(a for a in hint.__args__ if a is not type(None)))

    for component in current().components():
        add(component.spec)
    add(kinds.MoE)
    return found


@pytest.mark.parametrize("name", specs())
def test_every_spec_field_says_what_it_means(name: str) -> None:
    spec = specs()[name]
    assert [field for field, info in fields_of(spec).items() if not info.help.strip()] == []
    assert spec.__doc__
    assert not spec.__doc__.startswith(f"{spec.__name__}(")


@pytest.mark.parametrize("component", current().components(), ids=lambda c: f"{c.kind}/{c.full_name}")
def test_every_component_says_what_it_is(component: Component) -> None:
    assert component.summary.strip()
    assert "\n" not in component.summary
    assert not component.summary.endswith(".")


def test_nothing_public_passes_keywords_through() -> None:
    """No ``**kwargs``: options are declared once, in specs."""
    wrong = [
        f"{relative(path)}: {node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.args.kwarg is not None
    ]
    assert wrong == ["moekit/training/run/metrics_log.py: log_hyperparams"], (
        "this one has the signature of Lightning's loggers"
    )


def test_names_of_test_files_are_unique() -> None:
    """Tests are no packages, so two files of one name could not be told apart."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert {name: count for name, count in names.items() if count > 1} == {}
