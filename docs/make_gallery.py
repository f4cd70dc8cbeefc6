"""Generates the gallery, and the marked blocks of other pages, from the recipes and the results in ``lineage.json``.

python docs/make_gallery.py

Every language is written here, with the words of ``words.en.yaml`` and ``words.zh.yaml``.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from moekit import load
from moekit.params import ParameterCount, count_parameters
from moekit.registry import current
from moekit.spec.dumping import text_of
from moekit.spec.recipe import Paper, Recipe
from moekit_plan.params_cli import READINGS, rounded, rounded_like

DOCS = Path(__file__).parent
RESULTS = DOCS / "lineage.json"
FILLED = (DOCS.parent / "README.md", DOCS.parent / "README.zh.md", DOCS / "data.md", DOCS / "measurements.md")
"""Pages written by hand, with blocks that are generated."""
BLOCK = re.compile(r"(<!-- written by docs/make_gallery\.py: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Words:
    """Text of one language; ``{...}`` in it are filled in.

    Attributes:
        suffix: of the page's file name, before ``.md``.
        texts: the sections of the gallery and the blocks of other pages, by name.
        terms: labels, by their English; a missing one stays English.
        summaries: what each recipe is, by name; a missing one is the recipe's own.
        claims: what its paper reported, likewise.
    """

    suffix: str
    texts: Mapping[str, str]
    terms: Mapping[str, str]
    summaries: Mapping[str, str]
    claims: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.texts[name]

    def term(self, english: str) -> str:
        """A label in this language."""
        return self.terms.get(english, english)


def read_words(language: str, suffix: str) -> Words:
    """The words of a language, from its file."""
    texts = yaml.safe_load((DOCS / f"words.{language}.yaml").read_text(encoding="utf-8"))
    tables = {name: texts.pop(name, {}) for name in ("terms", "summaries", "claims")}
    return Words(suffix, texts, **tables)


ENGLISH, CHINESE = read_words("en", ""), read_words("zh", ".zh")


class Entry(NamedTuple):
    """A recipe of a paper, with its parameters counted."""

    name: str
    recipe: Recipe
    paper: Paper
    count: ParameterCount


@functools.cache
def papers() -> list[list[Entry]]:
    """The recipes of each paper, oldest first; within a paper those with data come first, then by size."""
    found: dict[str, list[Entry]] = {}
    for component in current().recipes:
        recipe = load(component.name)
        if component.plugin == "papers" and recipe.paper is not None and recipe.paper.title:
            entry = Entry(component.name, recipe, recipe.paper, count_parameters(recipe))
            found.setdefault(recipe.paper.title, []).append(entry)
    for entries in found.values():
        entries.sort(key=lambda e: (e.recipe.data is None, e.recipe.start is not None, e.count.total))
    return sorted(found.values(), key=lambda entries: (entries[0].paper.year, entries[0].paper.arxiv))


def page(words: Words = ENGLISH) -> str:
    """The whole gallery in one language."""
    every, results = papers(), stored_results()
    overview = "".join(f"{overview_row(e, words)}\n" for entries in every for e in entries if e.recipe.data)
    sections = "\n".join("\n".join(section(entries, words)) for entries in every)
    sizes = "".join(f"{size_row(e, words)}\n" for entries in every for e in entries if e.recipe.data is None)
    trained = "".join(f"{trained_row(name, numbers, words)}\n" for name, numbers in results.items())
    trained += verdict(results, words) + notes(results, words)
    field = [c for c in current().recipes if c.name.startswith("lineage/")]
    lineage = "".join(f"{field_row(component.name, words)}\n" for component in field)
    return (
        f"{words['head']}{overview}{words['trained']}{trained}{words['field']}{lineage}{words['components']}{sections}\n"
        f"{words['sizes']}{sizes}{words['prints']}"
    )


def stored_results() -> Results:
    """What ``benchmarks/lineage.py --docs`` wrote: the one source of every result on the pages."""
    results: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


TIE = 0.01
"""A relative difference below this means nothing with one seed: with three the gap of one recipe varied by 2 %."""


def gains(results: Results) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """How far mixtures end ahead of their dense baselines, by name: those ahead, those tied, those behind."""
    ends = {name: (r["curve"][-1][1], r["dense_curve"][-1][1]) for name, r in results.items() if r["dense_curve"]}
    gain = {name: (dense - moe) / dense for name, (moe, dense) in ends.items()}
    return (
        {name: g for name, g in gain.items() if g >= TIE},
        {name: g for name, g in gain.items() if abs(g) < TIE},
        {name: g for name, g in gain.items() if g <= -TIE},
    )


def verdict(results: Results, words: Words = ENGLISH) -> str:
    """Which mixtures end ahead of their dense baselines, which behind, and which are too close to tell."""
    ahead, tied, behind = (
        words["comma"].join(f"`{name}` ({value:+.1%})" for name, value in group.items()) for group in gains(results)
    )
    said = [words["ahead"].format(ahead)] if ahead else []
    said += [words["tied"].format(TIE, tied)] if tied else []
    said += [words["behind"].format(behind)] if behind else []
    return f"\n{' '.join(said)}\n"


def notes(results: Results, words: Words = ENGLISH) -> str:
    """What has changed since a recipe was trained, by recipes of which it is true."""
    found: dict[str, list[str]] = {}
    for name, numbers in results.items():
        if numbers.get("note"):
            found.setdefault(numbers["note"], []).append(f"`{name}`")
    return "".join(words["note"].format(words["comma"].join(names), words.term(note)) for note, names in found.items())


def filled(stored: str, words: Words = ENGLISH) -> str:
    """A page with its generated blocks anew.

    Raises:
        KeyError: a block of the page has a name that is not in ``BLOCKS``.
    """
    return BLOCK.sub(lambda block: block[1] + BLOCKS[block[2]](stored_results(), words) + block[3], stored)


def translation(results: Results, words: Words) -> str:
    """The results of translating."""
    numbers = results["gshard"]
    ours, compared = numbers["scores"], numbers["comparison"]
    bits, dense_bits = compared["moe"], compared["dense"]
    difference = abs(bits - dense_bits) / dense_bits
    return words["translation"].format(
        steps=numbers["steps"],
        bleu=ours["bleu"],
        chrf=ours["chrf"],
        dense_bleu=compared["dense_scores"]["bleu"],
        dense_chrf=compared["dense_scores"]["chrf"],
        pairs=ours["scored_pairs"],
        bits=bits,
        dense_bits=dense_bits,
        said=words["close"] if difference < TIE else words["apart"].format(difference),
    )


def newcomer(results: Results) -> dict[str, Any]:
    """The figures of the first command of README."""
    numbers = results["deepseek_v3"]
    compared = numbers["comparison"]
    return {
        "steps": numbers["steps"],
        "tokens": numbers["tokens"],
        "moe": compared["moe"],
        "dense": compared["dense"],
        "gain": (compared["dense"] - compared["moe"]) / compared["dense"],
        "active": compared["moe_active"],
        "total": compared["moe_total"],
        "dense_active": compared["dense_active"],
        "first": numbers["max_violation"][0],
        "last": numbers["max_violation"][1],
        "over": numbers["validation"]["max_violation"],
        "dropped": numbers["dropped"],
    }


def proof(results: Results, words: Words) -> str:
    """README's table of claims."""
    ahead, tied, behind = (len(group) for group in gains(results))
    counted = {"ahead": ahead, "tied": tied, "behind": behind, "compared": ahead + tied + behind}
    total = count_parameters(load("deepseek_v3-671b")).total
    found = verdicts()
    claims = {name.replace(" ", "_"): found[name] for name in found} | {"claims": found.total()}
    return words["proof"].format(**newcomer(results) | counted | claims | {"total": total})


def result(results: Results, words: Words) -> str:
    """What the first command ends with."""
    return words["result"].format(**newcomer(results))


def verdicts() -> Counter[str]:
    """How many claims of the ledger have each verdict."""
    papers = (json.loads(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "ledger").glob("*.json")))
    return Counter(claim["verdict"] for paper in papers for claim in paper["claims"])


PICTURE = DOCS / "images" / "experts.light.svg"
PICTURED = re.compile(
    r"(?P<kinds>\d+) kinds of text \(rows\) by (?P<experts>\d+) experts of layer (?P<layer>\S+) \(columns\): "
    r"the kinds of text have experts of their own\. Mutual information (?P<bits>\S+) of (?P<most>\S+) bits; "
    r"(?P<own>\d+) experts have a kind beyond chance\. The favourite expert of (?P<high>\w+) has (?P<times>\S+) times "
    r"a fair share, that of (?P<low>\w+) (?P<least>\S+) times\."
)
"""What ``moekit report --pictures`` says of its picture, whose metadata have it."""


def experts(results: Results, words: Words) -> str:
    """The picture of experts and kinds of text, with its words.

    Raises:
        ValueError: the picture says something else than that kinds of text have experts of their own.
    """
    (said,) = re.findall(r"<dc:description>(.*?)</dc:description>", PICTURE.read_text(encoding="utf-8"), re.DOTALL)
    found = PICTURED.fullmatch(" ".join(said.split()))
    if found is None:
        raise ValueError(f"{PICTURE.name} says something that has no translation: {said}")
    alt = words["pictured"].strip().format(**found.groupdict())
    return (
        '<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="docs/images/experts.dark.svg">\n'
        f'  <img alt="{alt}" src="docs/images/experts.light.svg">\n</picture>\n\n{words["caption"]}'
    )


def inside(results: Results, words: Words) -> str:
    """How many components and recipes there are."""
    registry = current()
    kinds = ("router", "expert", "dispatcher", "balancer", "attention", "model", "objective", "data")
    counts = {registry.kind(kind).plural: len(registry.components(kind)) for kind in kinds}
    counts |= {"recipes": len([c for c in registry.recipes if not c.name.startswith("base/")])}
    cells = ((words.term(name), str(count)) for name, count in counts.items())
    heads, numbers = zip(*cells, strict=True)
    return f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n| {' | '.join(numbers)} |\n"


BLOCKS: dict[str, Callable[[Results, Words], str]] = {
    "experts": experts,
    "inside": inside,
    "proof": proof,
    "result": result,
    "translation": translation,
}
"""The generated blocks, by the name in their markers."""


def trained_row(name: str, numbers: dict[str, Any], words: Words = ENGLISH) -> str:
    """Results of training one recipe."""
    ends = [f"{numbers['curve'][i][1]:.3f}" for i in (0, -1)]
    dense = f"{numbers['dense_curve'][-1][1]:.3f}" if numbers["dense_curve"] else "-"
    spread, over, dropped = "-", "-", "-"
    if numbers["max_violation"]:
        spread = words.term("{} to {}").format(*(f"{value:.2f}" for value in numbers["max_violation"]))
        over, dropped = f"{numbers['validation']['max_violation']:.2f}", f"{numbers['dropped']:.1%}"
        if "dropped_tokens" in numbers:
            dropped += f" ({numbers['dropped_tokens']:.1%})"
    dense_scores = (numbers.get("comparison") or {}).get("dense_scores") or {}
    scores = [
        f"{words.term(key.replace('_', ' '))} {value:.3g}"
        + (f" ({dense_scores[key]:.3g})" if key in dense_scores else "")
        for key, value in (numbers.get("scores") or {}).items()
    ]
    cells = [words.term(numbers["metric"].replace("_", " ")), *ends, dense, spread, over, dropped]
    cells.append(words["comma"].join(scores))
    return f"| `{name}` | {' | '.join(cells)} |"


def overview_row(e: Entry, words: Words) -> str:
    """One recipe with data, in a line."""
    size = f"{rounded(e.count.total)}, {rounded(e.count.active())}"
    claim = words.claims.get(e.name, e.paper.claim)
    return f"| {e.paper.year} | {e.paper.title} | `{e.name}` | {parts(e.recipe, words)} | {size} | {claim} |"


def field_row(name: str, words: Words) -> str:
    """One recipe of ``lineage/``, in a line."""
    recipe = load(name)
    count = count_parameters(recipe)
    return f"| `{name}` | {parts(recipe, words)} | {rounded(count.total)}, {rounded(count.active())} |"


def parts(recipe: Recipe, words: Words) -> str:
    """Router, experts, dispatcher and balancers of a recipe's mixtures, by name."""
    moe: Any = getattr(recipe.model, "moe", None)
    if moe is None:
        return words.term("none: a dense model")
    names = [current().use_name(spec) for spec in (moe.router, moe.experts, moe.dispatcher)]
    if moe.shared is not None:
        names[1] += " + shared"
    names.append(", ".join(current().use_name(b) for b in moe.balancers.values()) or words.term("none"))
    return " · ".join(names)


def section(entries: list[Entry], words: Words) -> Iterator[str]:
    """One paper: where it appeared, its recipes and their components."""
    paper = entries[0].paper
    where = f"arXiv [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.where
    yield f"### {paper.year}: {paper.title}\n"
    yield f"{paper.authors.rstrip('.')}. {where}.\n"
    for e in entries:
        if e.recipe.data is not None:
            summary = words.summaries.get(e.name, e.recipe.summary)
            yield words["section"].format(e.name, summary, rounded(e.count.total), rounded(e.count.active()))
            yield f"| {words.term('component')} | |\n|---|---|"
            yield from (f"| {part} | `{value}` |" for part, value in components(e.recipe, words))
            yield ""
    if at_size := [f"`{e.name}`" for e in entries if e.recipe.data is None]:
        yield f"{words.term('At its size')}: {words['comma'].join(at_size)}{words['stop']}\n"


def components(recipe: Recipe, words: Words) -> Iterator[tuple[str, str]]:
    """The components of a recipe, as text."""
    model: Any = recipe.model
    yield words.term("model"), text_of(model, without=["moe", "attention", "ffn", "vocab", "init_std", "init_scale"])
    for name in ("attention", "ffn"):
        if getattr(model, name, None) is not None:
            yield words.term(name), text_of(getattr(model, name))
    for name in ("at", "router", "experts", "shared", "dispatcher", "encoder_dispatcher"):
        if getattr(model.moe, name, None) is not None:
            label = {"at": "mixture layers"}.get(name, name.replace("_", "'s "))
            yield words.term(label), text_of(getattr(model.moe, name))
    for name, balancer in model.moe.balancers.items():
        yield f"{words.term('balancer')} `{name}`", text_of(balancer)
    yield words.term("objective"), text_of(recipe.objective)
    yield words.term("data"), text_of(recipe.data)
    if recipe.start is not None:
        yield words.term("starts from"), text_of(recipe.start)


def size_row(e: Entry, words: Words) -> str:
    """Published and counted parameters of one recipe."""
    bare = e.paper.total_reading == "without_either"
    total = e.count.without_embeddings if bare else e.count.total
    active = e.count.active(e.paper.reading or "both")
    note = words.term(READINGS[e.paper.reading or "both"])
    note += f"; {words.term('total without either')}" if bare else ""
    cells = [e.paper.total or "-", rounded_like(total, e.paper.total)]
    cells += [e.paper.active or "-", rounded_like(active, e.paper.active)]
    return f"| `{e.name}` | {' | '.join(cells)} | {note} |"


if __name__ == "__main__":
    for words in (ENGLISH, CHINESE):
        gallery = DOCS / f"gallery{words.suffix}.md"
        gallery.write_text(page(words), encoding="utf-8")
        print(gallery)
        for path in FILLED:
            if path.name.endswith(".zh.md") == (words.suffix == ".zh"):
                path.write_text(filled(path.read_text(encoding="utf-8"), words), encoding="utf-8")
                print(path)
