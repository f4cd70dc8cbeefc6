"""The structure of the project, checked on its source: allowed imports, torch-free modules, length of files, reference
implementations, documentation, names of tensors.
"""

from __future__ import annotations

import ast
import importlib
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

import pytest

from moekit import contracts
from moekit.component import Component
from moekit.registry import current
from moekit.spec import kinds
from moekit.spec.fields import Spec, fields_of, required

ROOT = Path(__file__).parents[2]
CORE = ROOT / "moekit"
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").is_file())
FILES = sorted(path for folder in (CORE, *PLUGINS) for path in folder.rglob("*.py"))

LONG: dict[str, str] = {
    "moekit_bench/step.py": "one comparison of training steps, and the two loops that it runs interleaved",
    "moekit/checkpoints/writing.py": "one protocol: who writes what, and every stage of a save, in order",
    "moekit/contracts/run.py": "the values that pass between data, model and objective, and who makes them",
    "moekit/contracts/layer.py": "the contracts of a layer, in the order in which it uses them",
    "moekit/inference/generate.py": "generating text: of prompts, of sources, and the steps of both",
    "moekit/registry.py": "every question about a name, and the messages for those without an answer",
    "moekit/run.py": "a run from Python: training it, and everything in its folder",
    "moekit/routing.py": "the three forms of a routing, and what each says of itself",
    "moekit/shards.py": "what a rank holds of a tensor, a model and an optimizer",
    "moekit/spec/fields.py": "how a spec class declares its options, and what holds for every spec",
    "moekit/spec/layers.py": "the layers of a spec: files, what they extend, and their merge",
    "moekit/spec/loading.py": "load, from what is given to a spec: layers, plan, conversion, construction",
    "moekit/spec/kinds.py": "the specs of every kind, which plugin authors subclass",
    "moekit/spec/planning.py": "one pass from the root to the leaves, and the mistakes that it finds",
    "moekit/spec/references.py": "interpolations: what they refer to, their values, their mistakes",
    "moekit/spec/tree.py": "a tree of plain data: read from text, with its places and its mistakes",
    "moekit_testing/checks/balancer.py": "all checks of balancers",
    "moekit_testing/checks/common.py": "all checks of every torch module",
    "moekit_testing/checks/dispatcher.py": "all checks of dispatchers",
    "moekit_testing/checks/router.py": "all checks of routers",
    "moekit_testing/foreign.py": "all checks of modules of other libraries",
    "moekit_lightning/sharded/module.py": "one strategy: everything that Lightning calls on it",
    "moekit_doctor/diagnosis.py": "one search for the non-finite component, forward and backward",
    "moekit/training/step.py": "one optimizer step, its gradients, and what follows if it is not finite",
    "moekit/training/run/saved.py": "what a checkpoint of a run holds, and whether a run can be resumed from one",
    "moekit/training/run/train.py": "a run from start to end, in order",
    "moekit/training/module.py": "one class: everything that Lightning calls on LitMoE",
    "moekit/spec/recipe.py": "one table: every option of a recipe and of its trainer",
    "moekit_plan/plan.py": "one sum: the terms of a device's memory and what they are made of",
}
"""Files of more than 250 lines, each with the one idea that makes it so."""

NO_ORACLE = {
    "moekit_lightning": "wraps Lightning, except averages of weights, whose formulas are tested, and sharded layouts",
    "moekit_data": "reads files; there is no equation",
    "moekit_optimizers": "torch's own, except adafactor; schedules are closed forms, tested at their corners",
    "moekit_upcycle": "its oracle is the dense model that the mixture is made of",
    "moekit_hf": "moves tensors without computing; its peer is transformers, in the checks of formats",
    "moekit_dispatchers/loop": "is the oracle of the other dispatchers; its own oracle is in tests/oracle",
    "moekit_dispatchers/auto": "chooses among the others",
    "moekit_dispatchers/fused": "its oracle is the loop dispatcher",
    "moekit_dispatchers/grouped": "its oracle is the loop dispatcher",
    "moekit_dispatchers/textbook": "its oracle is the loop dispatcher",
    "moekit_dispatchers/triton": "its oracle is the loop dispatcher",
    "moekit_models/mixture": "one MoELayer, whose components have oracles",
    "moekit_models/mlp": "two linear layers of torch",
    "moekit_objectives/squared_error": "one line of torch",
}
"""Packages, or whole plugins, without a ``naive.py``, each with the reason."""

TORCH_FREE = (
    *("moekit", "moekit.component", "moekit.discovery", "moekit.errors", "moekit.hookspecs", "moekit.plugin"),
    *("moekit.registry", "moekit.spec", "moekit.cli"),
)


TERMS: dict[str, str] = {
    "auto": "a value of Lightning's options",
    "bytes": "a unit of memory, and a type of Python",
    "capacity": "the limit of an expert's tokens",
    "dense": "a model without experts; the name of its run folder",
    "ffn": "the feed-forward part of a block",
    "loop": "a loop over experts",
    "mixture": "a kind of a model's output; the model with experts, in tables",
    "relative": "as in relative error",
    "routing": "a router's decision",
    "sharded": "of a model whose tensors are split over ranks",
    "soft": "a form of routing",
    "steps": "optimizer steps",
}
"""Names of components that the core also uses as words, each with its meaning there."""


def relative(path: Path) -> str:
    """``moekit/moe_layer.py``; for a plugin's file, the path below ``plugins/``."""
    return path.relative_to(ROOT if path.is_relative_to(CORE) else ROOT / "plugins").as_posix()


def module_name(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, top: bool = False) -> Iterator[str]:
    """Every module that a file imports, relative imports resolved; with ``top``, only by statements at its top level.

    Names imported from a module are listed below it, since they may be modules too. What type checkers alone import
    does not count.
    """
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in tree(path).body if top else executed(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, except those under ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from executed(child)


def texts(node: ast.AST) -> Iterator[ast.Constant]:
    """The string constants below a node, without docstrings and other bare texts, and without ``EXAMPLES``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and not isinstance(node, ast.Expr):
            yield child
        elif not (isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "EXAMPLES"):
            yield from texts(child)


def modules() -> list[str]:
    """Every module of the project except ``moekit.__main__``, which runs a command when imported."""
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


def test_data_and_evaluators_import_nothing_of_training_and_inference() -> None:
    """What they need of a run is handed to them (``moekit.contracts.Trained``)."""
    upper = ("moekit.training", "moekit.inference")
    files = [path for path in FILES if relative(path).startswith("moekit_data/")]
    assert files
    assert [(relative(path), name) for path in files for name in imports(path) if name.startswith(upper)] == []


def test_the_core_names_no_metric_of_a_plugin() -> None:
    """Labels, digits and the headline of a run come from the components that log the metrics."""
    classes = [component.spec_class for component in current().components()]
    names = {name for spec in classes if not required(spec) for name in spec().metrics()} - {"loss"}
    assert {"bits_per_byte", "blend_mse", "bleu", "accuracy"} <= names
    texts = {
        f"{relative(path)}: {node.value}"
        for path in FILES
        if path.is_relative_to(CORE)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.rpartition("/")[2] in names
    }
    assert texts == set()


def test_the_core_names_no_component() -> None:
    """In no text but docstrings and examples. A default is claimed by a component; a capability is stated by its spec.

    A name that is also a term is allowed as a word, but not in quotes, which would name the component.
    """
    names = {component.name for component in current().components() if component.kind != "claim"}  # named as recipes
    assert len(names) > 40 and set(TERMS) <= names
    named = re.compile(r"\b(" + "|".join(sorted(names - set(TERMS))) + r")\b|use: *(\w+)|'(" + "|".join(TERMS) + r")'")
    wrong = {
        f"{relative(path)}:{node.lineno}: {node.value!r}"
        for path in FILES
        if path.is_relative_to(CORE)
        for node in texts(tree(path))
        if named.search(node.value)
    }
    assert wrong == set()


def test_plugins_import_no_other_plugin() -> None:
    """But for the checks of a kind, which are for the conformance kit alone and import it."""
    wrong = [
        (relative(path), name)
        for plugin in PLUGINS
        for path in plugin.rglob("*.py")
        for name in imports(path)
        if name.startswith("moekit_")
        and name.partition(".")[0] != plugin.name
        and not (path.name == "checks.py" and name.startswith("moekit_testing"))
    ]
    assert wrong == []


def test_parallel_imports_nothing_of_checkpoints() -> None:
    """Both build on ``moekit/shards.py``: a layout must not depend on how it is stored."""
    files = [path for path in FILES if path.is_relative_to(CORE / "parallel")]
    assert files
    wrong = [(relative(p), name) for p in files for name in imports(p) if name.startswith("moekit.checkpoints")]
    assert wrong == []


def test_the_training_package_has_at_most_twelve_entries() -> None:
    """A newcomer takes in a dozen names at once; what belongs together goes into a package below."""
    entries = {path.name for path in (CORE / "training").iterdir() if not path.name.startswith("__pycache__")}
    assert {"callbacks", "run", "module.py"} < entries and len(entries) <= 12


def test_an_oracle_imports_nothing_of_its_plugin() -> None:
    oracles = [path for path in FILES if path.name == "naive.py"]
    assert oracles
    assert [(relative(p), name) for p in oracles for name in imports(p) if name.startswith("moekit_")] == []


def test_torch_free_modules_import_no_torch() -> None:
    """``__init__`` of plugins and of their packages, which hold specs; the registry and specs of the core; verbs."""
    packages = [p.parent for plugin in PLUGINS for p in plugin.rglob("module.py")]
    names = [module_name(plugin / "__init__.py") for plugin in PLUGINS]
    names += [module_name(package / "__init__.py") for package in packages]
    names += [verb.target for verb in current().verbs if verb.target.startswith("moekit_")]
    names += [m for m in modules() if m in TORCH_FREE or m.startswith(("moekit.spec.", "moekit.cli."))]
    found = import_alone(names, preload=[])
    heavy = {name: (error, set(loaded) - {"omegaconf"}) for name, (error, loaded) in found.items()}
    assert {name: answer for name, answer in heavy.items() if answer != ("", set())} == {}
    assert len(found) > 60


def test_nothing_imports_in_a_circle() -> None:
    """So modules can be imported in any order. Imports inside functions count too: they would only hide a circle."""
    names = {module_name(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        taken = {other for other in imports(path) if other in names}
        around = {
            other for other in taken if name.startswith(f"{other}.") and any(t.startswith(f"{other}.") for t in taken)
        }
        graph[name] = taken - around - {name}  # a module may import others from the package that both are in
    assert sum(len(others) for others in graph.values()) > 3 * len(graph)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a circle


def test_only_compat_uses_private_interfaces_of_other_packages() -> None:
    """By name: a private attribute that no file of ours defines, or an import of a private module or name."""
    files = [path for path in FILES if path.name != "compat.py"]
    ours = {name for path in files for name in stored_names(path)}
    ours |= {
        "_make",
        "_replace",
        "_asdict",
        "_option_string_actions",
        "_actions",
        "_to_copy",
    }  # named tuples, argparse, an operator
    private = re.compile(r"(?:.*\.)?_[A-Za-z]\w*(?:\..*)?")
    attributes = {
        f"{relative(path)}:{node.lineno}: .{node.attr}"
        for path in files
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and private.fullmatch(node.attr) and node.attr not in ours
    }
    imported = {
        f"{relative(p)}: {name}"
        for p in files
        for name in imports(p)
        if name[:6] != "moekit" and private.fullmatch(name)
    }
    assert attributes | imported == set()


@pytest.mark.slow
def test_every_module_can_be_imported_first() -> None:
    roots = {name.partition(".")[0] for path in FILES for name in imports(path, top=True)}
    libraries = sorted(r for r in roots if r and not r.startswith("moekit") and r not in sys.stdlib_module_names)
    found = import_alone(modules(), preload=libraries)
    assert {name: error for name, (error, _) in found.items() if error} == {}
    assert len(found) == len(modules())


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_script_can_be_imported(path: Path) -> None:
    """The rest of the suite runs none of them, so a renamed name would stay unnoticed."""
    importlib.import_module(path.stem)


def test_files_of_more_than_250_lines_have_a_reason() -> None:
    long = {relative(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 250}
    assert {name: n for name, n in long.items() if name not in LONG} == {}
    assert set(LONG) <= set(long), "listed as long, but short"


def test_every_package_of_a_plugin_has_a_reference_implementation() -> None:
    packages = [p.parent for plugin in PLUGINS for p in plugin.rglob("module.py")]
    bare = {relative(package) for package in packages if not (package / "naive.py").is_file()}
    assert {name for name in bare if name not in NO_ORACLE and name.partition("/")[0] not in NO_ORACLE} == set()
    assert {name for name in NO_ORACLE if not any(f"{package}/".startswith(f"{name}/") for package in bare)} == set()


def public(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public functions, classes and their public methods: each name, with the node of its docstring."""
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


def test_public_functions_that_raise_say_so() -> None:
    """In a ``Raises:`` section, or in a sentence. Only exceptions that a function itself makes count."""
    silent = [
        f"{relative(p)}:{node.lineno}: {name}"
        for p in FILES
        for name, node in public(p)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call) for inner in ast.walk(node))
        and "raise" not in (ast.get_docstring(node) or "").lower()
    ]
    assert silent == []


def test_every_pytest_raises_has_match() -> None:
    """An exception of the right class may still be the wrong one."""
    unmatched = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "pytest.raises"
        and not any(keyword.arg == "match" for keyword in node.keywords)
    ]
    assert unmatched == []


def legend() -> set[str]:
    """The letters of the table of shapes in docs/conventions.md."""
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
    """No concrete class is subclassed: components share code through abstract classes and functions."""
    for component in current().components():
        component.load()
    interfaces = [
        c for c in vars(contracts).values() if inspect.isclass(c) and c.__module__.startswith(contracts.__name__)
    ]
    ours = {c for base in interfaces for c in subclasses(base) if c.__module__.startswith("moekit")}
    assert len(ours) > 20
    wrong = [
        f"{c.__qualname__} subclasses the concrete {base.__qualname__}"
        for c in ours
        for base in c.__bases__
        if base in ours and base not in interfaces and not inspect.isabstract(base)
    ]
    assert wrong == []


def specs() -> dict[str, type[Spec]]:
    """Spec classes of every component and of a mixture layer, and the groups of options in them, by name."""
    found: dict[str, type[Spec]] = {}

    def add(spec: type[Spec]) -> None:
        if spec.__qualname__ not in found:
            found[spec.__qualname__] = spec
            for info in fields_of(spec).values():
                if info.kind == "group":
                    add(info.specs[0])

    for component in current().components():
        add(component.spec_class)
    add(kinds.MoE)
    return found


@pytest.mark.parametrize("name", specs())
def test_every_option_has_a_help_text(name: str) -> None:
    spec = specs()[name]
    assert [field for field, info in fields_of(spec).items() if not info.help.strip()] == []
    assert spec.__doc__
    assert not spec.__doc__.startswith(f"{spec.__name__}(")


@pytest.mark.parametrize("component", current().components(), ids=lambda c: f"{c.kind}/{c.full_name}")
def test_every_component_has_a_summary_of_one_line(component: Component) -> None:
    assert component.summary.strip()
    assert "\n" not in component.summary
    assert not component.summary.endswith(".")


def test_no_public_function_takes_any_keyword() -> None:
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
    """Tests are not packages, so pytest could not distinguish two files of one name."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert {name: count for name, count in names.items() if count > 1} == {}
