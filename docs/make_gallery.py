"""Writes ``docs/gallery.md``: every recipe of the first-party plugins, by paper and year, from the recipes themselves.

python docs/make_gallery.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moekit import load
from moekit.cli.params import READINGS, rounded, rounded_like
from moekit.params import count_parameters
from moekit.registry import current
from moekit.spec.diffing import tell
from moekit.spec.recipe import Paper, Recipe

PAGE = Path(__file__).with_name("gallery.md")

HEAD = """\
# Gallery

Every paper is a YAML file over the same parts. This page is generated from the recipes (`python docs/make_gallery.py`).

- Train one: `moekit train switch`. Each takes minutes on two cores, on data that is already on the machine.
- Read one: `moekit config print switch`. Compare two: `moekit config diff glam deepseek_moe`.
- Count one at the size of its paper: `moekit params switch-c`.

| year | paper | recipe | router · experts · dispatcher · balance | parameters, active | what the paper reported |
|---|---|---|---|---|---|
"""

PARTS = """
## Part by part

"""

SIZES = """
## At the sizes of their papers

To read and to count; nothing of this size is allocated. *Active* is what one token runs through, by the reading that
the paper means. Where the print cannot be right, the recipe says so.

| recipe | published | counted | active, published | active, counted | reading |
|---|---|---|---|---|---|
"""


def papers() -> dict[str, list[tuple[str, Recipe]]]:
    """The recipes of each paper, by its title, oldest first; in a paper those that can be trained come first."""
    found: dict[str, list[tuple[str, Recipe]]] = {}
    for component in current().components("recipe"):
        recipe = load(component.name)
        if component.plugin == "papers" and recipe.paper is not None and recipe.paper.title:
            found.setdefault(recipe.paper.title, []).append((component.name, recipe))
    for recipes in found.values():
        recipes.sort(key=lambda named: (named[1].data is None, -_size(named[1])))
    return dict(sorted(found.items(), key=lambda named: (paper_of(named[1]).year, paper_of(named[1]).arxiv)))


def paper_of(recipes: list[tuple[str, Recipe]]) -> Paper:
    """The paper that recipes share, with the claim of the first one that states it."""
    stated = [recipe.paper for _, recipe in recipes if recipe.paper is not None]
    return next((paper for paper in stated if paper.claim), stated[0])


def page() -> str:
    """The whole page."""
    rows = papers()
    told = "".join("\n".join(section(recipes)) + "\n" for recipes in rows.values())
    sizes = "".join(f"{size_row(name, r)}\n" for recipes in rows.values() for name, r in recipes if r.data is None)
    overview = "".join(
        f"{overview_row(recipes, name, r)}\n" for recipes in rows.values() for name, r in recipes if r.data
    )
    return HEAD + overview + PARTS + told.rstrip("\n") + "\n" + SIZES + sizes


def overview_row(recipes: list[tuple[str, Recipe]], name: str, recipe: Recipe) -> str:
    """One recipe that can be trained, in a line."""
    paper, count, moe = paper_of(recipes), count_parameters(recipe), getattr(recipe.model, "moe", None)
    used = [] if moe is None else [moe.router, moe.experts, moe.dispatcher]
    words = [current().use_name(spec) for spec in used]
    if getattr(moe, "shared", None) is not None:
        words[1] += " + shared"
    words.append(", ".join(current().use_name(b) for b in moe.balancers.values()) or "none" if moe else "")
    size = f"{rounded(count.total)}, {rounded(count.active())}"
    return f"| {paper.year} | {paper.title} | `{name}` | {' · '.join(filter(None, words))} | {size} | {paper.claim} |"


def section(recipes: list[tuple[str, Recipe]]) -> Iterator[str]:
    """One paper: where it appeared, what it claims, its recipes and their parts."""
    paper = paper_of(recipes)
    where = f"arXiv [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.where
    yield f"### {paper.year}: {paper.title}\n"
    yield f"{paper.authors.rstrip('.')}. {where}.\n"
    if paper.claim:
        yield f"Reported: {paper.claim}.\n"
    at_size = [f"`{name}`" for name, recipe in recipes if recipe.data is None]
    for name, recipe in recipes:
        if recipe.data is not None:
            count = count_parameters(recipe)
            yield f"**`moekit train {name}`**: {recipe.summary}."
            yield f"{rounded(count.total)} parameters, {rounded(count.active())} active a token.\n"
            yield "| part | |\n|---|---|"
            yield from (f"| {part} | `{value}` |" for part, value in parts(recipe))
            yield ""
    if at_size:
        yield f"At its size: {', '.join(at_size)}.\n"


def parts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The parts that make a paper, in words."""
    model: Any = recipe.model
    moe = getattr(model, "moe", None)
    yield "model", tell(model, without=["moe", "attention", "ffn", "vocab", "init_std", "objective"])
    for name in ("attention", "ffn"):
        if getattr(model, name, None) is not None:
            yield name, tell(getattr(model, name))
    for name in ("at", "router", "experts", "shared", "dispatcher"):
        if getattr(moe, name, None) is not None:
            yield {"at": "mixture layers"}.get(name, name), tell(getattr(moe, name))
    for name, balancer in ({} if moe is None else moe.balancers).items():
        yield f"balancer `{name}`", tell(balancer)
    yield "objective", tell(recipe.objective)
    yield "data", tell(recipe.data)


def size_row(name: str, recipe: Recipe) -> str:
    """Published and counted parameters of one recipe."""
    paper, count = recipe.paper, count_parameters(recipe)
    assert paper is not None
    total = count.without_embeddings if paper.total_reading == "without_either" else count.total
    active = count.active(paper.reading or "both")
    note = READINGS[paper.reading] if paper.reading else "with both embeddings"
    if paper.total_reading == "without_either":
        note += "; total without either"
    cells = (paper.total or "-", rounded_like(total, paper.total), paper.active or "-")
    return f"| `{name}` | {' | '.join(cells)} | {rounded_like(active, paper.active)} | {note} |"


def _size(recipe: Recipe) -> int:
    return count_parameters(recipe).total


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
