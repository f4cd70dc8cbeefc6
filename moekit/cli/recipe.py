"""The page of a recipe that ``moekit show`` prints: its paper, its components, its YAML, what to try next."""

from __future__ import annotations

from collections.abc import Iterator

from moekit.cli import text
from moekit.component import RecipeFile
from moekit.registry import Registry
from moekit.spec import load
from moekit.spec.fields import Spec, fields_of
from moekit.spec.recipe import Paper, Recipe


def page(registry: Registry, file: RecipeFile) -> list[str]:
    """The lines of the page.

    Raises:
        SpecError: with every mistake in the recipe.
    """
    name = registry.short_name(file) if file.plugin else file.name
    recipe = load(name)
    about = list(_paper_rows(recipe.paper)) if recipe.paper else []
    if file.plugin:
        about.append(("plugin", f"{file.plugin} ({registry.origin(file)})"))
    about.append(("file", str(file.path)))
    return [
        text.bold(f"recipe {file.name}"),
        *text.paragraph(recipe.summary),
        "",
        *text.table(about, fold=(1,)),
        "",
        text.bold("components"),
        *text.table(list(component_rows(registry, recipe)), fold=(2,)),
        "",
        text.bold("YAML"),
        *(f"  {line}".rstrip() for line in file.path.read_text(encoding="utf-8").splitlines()),
        "",
        text.bold("next"),
        *text.table(_next(registry, name, recipe)),
    ]


def component_rows(registry: Registry, spec: Spec, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, name and summary of each component in a spec."""
    for name, info in fields_of(type(spec)).items():
        value = getattr(spec, name)
        if info.kind == "option" or value is None:
            continue
        specs = {f"{name}.{key}": each for key, each in value.items()} if info.kind == "slots" else {name: value}
        for path, each in specs.items():
            if info.kind != "group":
                yield f"{prefix}{path}", registry.use_name(each), registry.component_of(each).summary
            yield from component_rows(registry, each, f"{prefix}{path}.")


def _paper_rows(paper: Paper) -> Iterator[tuple[str, str]]:
    arxiv = f"arXiv {paper.arxiv}" if paper.arxiv else ""
    year = str(paper.year) if paper.year else ""
    yield "paper", ", ".join(filter(None, [paper.title, paper.authors, year, paper.where, arxiv]))
    if paper.claim:
        yield "claim", paper.claim
    if paper.total or paper.active:
        counts = [f"{paper.total} in total" if paper.total else "", f"{paper.active} active" if paper.active else ""]
        yield "parameters", ", ".join(filter(None, counts)) + ", as published"


def _next(registry: Registry, name: str, recipe: Recipe) -> list[tuple[str, str]]:
    trains = recipe.objective is not None and recipe.data is not None
    first = (
        recipe.start.run if recipe.start is not None and recipe.start.run in [r.name for r in registry.recipes] else ""
    )
    return [
        *([(f"moekit train {first}", "first: it starts from these weights")] if first else []),
        *([(f"moekit train {name}", "train it")] if trains else []),
        (f"moekit params {name}", "count its parameters"),
        (f"moekit config print {name}", "every option, resolved"),
    ]
