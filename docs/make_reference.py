"""Writes the reference: components.md, commands.md and recipes.md from the registry, and blocks of install.md.

python docs/make_reference.py
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from moekit.cli.core import VERBS
from moekit.cli.plugins import offers
from moekit.cli.show import capabilities, option_rows, slot_rows
from moekit.cli.verbs import find, module_of, parser_of
from moekit.component import Component, Kind, RecipeFile, Verb, import_string
from moekit.registry import current
from moekit.spec import load
from moekit.spec.fields import required

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(<!-- written by docs/make_reference\.py: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)

EXTRAS = {
    "plots": ("pictures of a run, of a report and of a sweep", "运行、报告与扫描的图片"),
    "tensorboard": ("TensorBoard's event files", "TensorBoard 的事件文件"),
    "tokenizers": ("the tokenizer `bpe`", "分词器 `bpe`"),
    "translation": (
        "texts in many languages and their scores: the recipe `gshard`",
        "多种语言的文本及其评分：配方 `gshard`",
    ),
    "triton": ("Triton, for the dispatcher `triton` on GPUs", "Triton，供 GPU 上的分发器 `triton` 使用"),
    "hf": ("transformers, tokenizers and files of Hugging Face", "Hugging Face 的 transformers、分词器和文件"),
    "wandb": ("the logger of Weights & Biases", "Weights & Biases 的日志器"),
    "mlflow": ("the logger of MLflow", "MLflow 的日志器"),
    "optuna": ("guided sweeps: `moekit sweep --tpe`, `--prune`", "引导式扫描：`moekit sweep --tpe`、`--prune`"),
    "datasets": (
        "data sets of Hugging Face, Parquet, Arrow and `.zst` files",
        "Hugging Face 数据集，以及 Parquet、Arrow 和 `.zst` 文件",
    ),
    "all": ("all of the above", "以上全部"),
    "test": ("everything that the test suite needs", "测试所需的一切"),
    "examples": ("what the scripts of `examples/` need", "`examples/` 中的脚本所需的一切"),
    "docs": ("what builds the documentation site", "构建文档站点所需的一切"),
    "dev": ("`test`, and the hooks that run before a commit", "`test`，以及提交前运行的钩子"),
}
"""What each extra of pyproject.toml is for, in English and Chinese."""


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; nothing without rows."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head = list(heads)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines)) if lines else ""


def default_text(default: str) -> str:
    """A default as a cell."""
    return f"*{default}*" if default in ("required", "optional") else f"`{default}`" if default else ""


def words(type_text: str) -> str:
    """A type or range as text without the bars that would end a table's cell."""
    return type_text.replace(" | ", ", ")


# Components


def components_page() -> str:
    """Every kind, and every component of it with its options."""
    registry = current()
    kinds = [kind for kind in registry.kinds.values() if registry.components(kind.name)]
    overview = table(
        ["kind", "components", "what it does", "base of its specs"],
        [
            [
                f"[`{kind.name}`](#{anchor(kind)})",
                str(len(registry.components(kind.name))),
                kind.summary,
                f"`{kind.spec_class.__module__}.{kind.spec_class.__name__}`",
            ]
            for kind in kinds
        ],
    )
    return COMPONENTS + overview + "".join(f"\n{section}" for kind in kinds for section in kind_sections(kind))


COMPONENTS = """\
# Components

Every component of moekit, by kind, with its options. `python docs/make_reference.py` generates this page. `moekit show
NAME` prints the same, also of plugins that you installed; `moekit ls KIND` lists their names.

A component is named in a recipe by `use:`, together with its options: `router: {use: topk, top_k: 2}`. An option
without a default is *required*. *Capabilities* are facts that composition and the conformance kit read.

"""


def anchor(kind: Kind) -> str:
    """The anchor of a kind's heading."""
    return heading(kind).lower().replace(" ", "-")


def heading(kind: Kind) -> str:
    """The heading of a kind."""
    return kind.plural.replace("_", " ").capitalize()


def kind_sections(kind: Kind) -> Iterator[str]:
    """The heading of a kind, and a section for each component."""
    yield f"## {heading(kind)}\n\n{kind.summary[:1].upper()}{kind.summary[1:]}.\n"
    for component in current().components(kind.name):
        yield component_section(component)


def component_section(component: Component) -> str:
    """One component: what it is, its options, slots and capabilities."""
    spec = component.spec_class
    must = "".join(f", {name}: ..." for name in required(spec))
    target = component.target if isinstance(component.target, str) else import_string(component.target)
    about = [f"Source: {component.paper}."] if component.paper else []
    about.append(f"Made by `{target.replace(':', '.')}`.")
    options = [
        [f"`{name}`", words(kind), default_text(default), words(limits), help_text]
        for name, kind, default, limits, help_text in option_rows(spec)
    ]
    slots = [[f"`{name}`", takes, help_text] for name, takes, help_text, _ in slot_rows(spec)]
    claims = [f"`{name}`: {value}" for name, value in capabilities(spec).items()]
    failures = [f"`{check}`: {reason}" for check, reason in component.known_failures.items()]
    parts = [
        f"### {component.kind} `{component.name}`\n",
        f"{component.summary[:1].upper()}{component.summary[1:]}. {' '.join(about)}\n",
        f"`{{use: {current().short_name(component)}{must}}}`\n",
        table(["option", "type", "default", "range", "meaning"], options),
        table(["slot", "takes", "meaning"], slots),
        f"Capabilities: {'; '.join(claims)}.\n" if claims else "",
        f"Known failures of conformance checks: {'; '.join(failures)}.\n" if failures else "",
    ]
    return "\n".join(part for part in parts if part)


# Commands


def commands_page() -> str:
    """Every verb of the command line, from its parser."""
    verbs = [find(name) for name in VERBS] + [verb for verb in current().verbs if verb.name not in VERBS]
    overview = table(
        ["verb", "what it does"],
        [[f"[`{called(v)}`](#moekit-{called(v).replace(' ', '-')})", v.summary] for v in verbs],
    )
    return COMMANDS + overview + "".join(f"\n{verb_section(verb)}" for verb in verbs)


COMMANDS = """\
# Commands

Every verb of `moekit`. `python docs/make_reference.py` generates this page; `moekit VERB --help` prints the same. A
verb that takes a recipe also takes overrides, `path.of.option=value`, in any place.

The exit code is 0 after success, 1 if something failed that the verb checks, 2 after a mistake, whose reason is
printed, and 130 after Ctrl-C.

"""


def called(verb: Verb) -> str:
    """Its name as one types it; an action that is added to another verb follows that verb."""
    return verb.name.replace(".", " ")


def verb_section(verb: Verb) -> str:
    """One verb: synopsis, arguments, examples."""
    parser, module = parser_of(verb), module_of(verb)
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    synopsis = " ".join([f"moekit {called(verb)}", *(shown(a) if is_needed(a) else f"[{shown(a)}]" for a in actions)])
    rows = [[f"`{shown(action)}`", meaning(parser, action)] for action in actions]
    parts = [
        f"## moekit {called(verb)}\n",
        f"{verb.summary[:1].upper()}{verb.summary[1:]}.\n",
        f"```text\n{synopsis}\n```\n",
        table(["argument", "meaning"], rows),
        f"```text\n{module.EXAMPLES.rstrip()}\n```\n",
    ]
    return "\n".join(part for part in parts if part)


def is_needed(action: argparse.Action) -> bool:
    """Whether a command without this argument is refused. ``required`` of ``*`` depends on the version of Python."""
    return action.required if action.option_strings else action.nargs not in ("*", "?")


def shown(action: argparse.Action) -> str:
    """An argument as one writes it: ``RUN``, ``--seeds N``, ``--text FILE ...``."""
    name = ", ".join(option for option in action.option_strings if option.startswith("--"))
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper() if name else action.dest
    if action.choices is not None and action.metavar is None:
        metavar = ",".join(map(str, action.choices))
    value = "" if action.nargs == 0 else metavar + (" ..." if action.nargs in ("*", "+") else "")
    return f"{name} {value}".strip()


def meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an argument, with its defaults filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


# Recipes


def recipes_page() -> str:
    """Every recipe with its plugin."""
    recipes = current().recipes
    trained = [recipe_row(recipe) for recipe in recipes if not is_size(recipe) and "/" not in recipe.name]
    field = [recipe_row(recipe) for recipe in recipes if recipe.name.startswith("lineage/")]
    sizes = [recipe_row(recipe) for recipe in recipes if is_size(recipe) and "/" not in recipe.name]
    bases = [recipe_row(recipe) for recipe in recipes if recipe.name.startswith("base/")]
    heads = ["recipe", "plugin", "what it is"]
    return RECIPES.format(*(table(heads, rows) for rows in (trained, field, bases, sizes)))


RECIPES = """\
# Recipes

Every recipe that moekit has. `python docs/make_reference.py` generates this page. `moekit ls recipes` lists them, also
those of plugins; `moekit config print NAME` prints one, resolved; [the gallery](gallery.md) says what each paper did.

## To train

With data, on one machine: `moekit train NAME`.

{}
## One field for all

They differ in the mixture alone; [the field](lineage.md) compares them.

{}
## To extend

`extends: base/language_model` in a recipe of your own.

{}
## At published sizes

Without data: `moekit params NAME` counts their parameters, `moekit plan NAME` estimates memory and traffic, and
`moekit.layer("NAME", dim=...)` makes their layer.

{}"""


def is_size(recipe: RecipeFile) -> bool:
    """Whether a recipe is a model without data."""
    return load(recipe.name).data is None


def recipe_row(recipe: RecipeFile) -> list[str]:
    """A recipe's line."""
    return [f"`{recipe.name}`", recipe.plugin, load(recipe.name).summary]


# Directory of plugins


def directory_page() -> str:
    """The plugins of plugins.toml, and moekit's own."""
    listed = tomllib.loads((DOCS / "plugins.toml").read_text(encoding="utf-8"))["plugin"]
    others = [
        [f"[`{one['package']}`]({home(one['home'])})", ", ".join(one["offers"]), one["summary"], f"`{one['moekit']}`"]
        for one in listed
    ]
    registry = current()
    own = [[f"`{plugin.name}`", f"`{plugin.module}`", offers(registry, plugin)] for plugin in registry.plugins]
    return DIRECTORY.format(
        others=table(["package", "offers", "what it adds", "moekit"], others),
        own=table(["plugin", "module", "offers"], own),
    )


DIRECTORY = """\
# Directory of plugins

`pip install PACKAGE` makes what a plugin offers available by name: `moekit plugins` lists it, `use:` uses it.

## Packages of others

{others}
To add yours, add an entry to `docs/plugins.toml`. It is listed if it installs, `moekit check` passes, and its page says
what it adds and which paper it comes from. A listed plugin was not reviewed: it is code that runs with your rights.
`moekit new router my_router` writes the package; see [writing a plugin](writing_a_plugin.md).

## In moekit

The same mechanism provides everything that moekit itself has:

{own}"""


def home(where: str) -> str:
    """The address of a plugin's source; a folder of this repository is seen from the page."""
    return where if where.startswith("https://") else f"../{where}"


# Blocks


def extras(language: int) -> str:
    """The extras of pyproject.toml, in English (0) or Chinese (1).

    Raises:
        KeyError: ``EXTRAS`` does not say what one is for.
    """
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table(
        (["extra", "for", "packages"], ["附加项", "用途", "包"])[language],
        [
            [
                f"`{name}`",
                EXTRAS[name][language],
                (", ", "、")[language].join(f"`{re.split('[<>=; ]', needs)[0]}`" for needs in packages),
            ]
            for name, packages in project["optional-dependencies"].items()
        ],
    )


PAGES: dict[str, Callable[[], str]] = {
    "components.md": components_page,
    "commands.md": commands_page,
    "recipes.md": recipes_page,
    "plugin_directory.md": directory_page,
}
BLOCKS: dict[str, Callable[[int], str]] = {"extras": extras}
FILLED = ("install.md", "install.zh.md")
"""Pages written by hand, with blocks that are generated."""


def filled(name: str) -> str:
    """A page with its generated blocks anew."""
    language = int(name.endswith(".zh.md"))
    stored = (DOCS / name).read_text(encoding="utf-8")
    return BLOCK.sub(lambda block: block[1] + BLOCKS[block[2]](language) + block[3], stored)


def main() -> None:
    """Writes every page."""
    for name, made in PAGES.items():
        (DOCS / name).write_text(made(), encoding="utf-8")
        print(DOCS / name)
    for name in FILLED:
        path = DOCS / name
        path.write_text(filled(name), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
