"""Generates ``docs/gallery.md`` from the recipes of the first-party plugins, by paper and year, and figures in data.md.

python docs/make_gallery.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moekit import load
from moekit.cli.params import READINGS, rounded, rounded_like
from moekit.params import ParameterCount, count_parameters
from moekit.registry import current
from moekit.spec.diffing import text_of
from moekit.spec.recipe import Paper, Recipe

PAGE = Path(__file__).with_name("gallery.md")
RESULTS = Path(__file__).with_name("lineage.json")
DATA_PAGE = Path(__file__).with_name("data.md")
BEGIN, END = "<!-- written by docs/make_gallery.py -->\n", "<!-- end -->\n"

HEAD = """\
# Gallery

Every paper is a YAML file that combines the same components. `python docs/make_gallery.py` generates this page.

- Train one: `moekit train switch`. Each takes minutes on two cores, on data that is already on your machine. `gshard`
  needs `pip install -e '.[translation]'` first, `st_moe_finetune` a run of `st_moe`.
- Print one: `moekit config print switch`. Compare two: `moekit config diff glam deepseek_moe`.
- Count the parameters at the size of a paper: `moekit params switch-c`.

| year | paper | recipe | router · experts · dispatcher · balance | parameters, active | what the paper reported |
|---|---|---|---|---|---|
"""

TRAINED = """
## Trained here

`python benchmarks/lineage.py --docs` trained each recipe to its end, and its dense baseline: as many multiply-adds a
token, on the same batches. The table has the metric at the first and the last validation; MaxVio per batch (mean of the
first and of the last tenth of the steps) and of the load over the whole validation set; and the pairs dropped in the
last steps (in brackets, the tokens that lost all their experts). There is one seed: a difference of one percent means
nothing.

![Validation curves of every recipe and of its dense baseline](images/lineage.png)

| recipe | metric | first | last | dense, last | MaxVio, start to end | over validation | dropped | scores (dense) |
|---|---|---|---|---|---|---|---|---|
"""

COMPONENTS = """
## Components of each recipe

"""

FIELD = """
## One field for all

Papers differ in everything; the recipes of `lineage/` differ in the mixture alone: decoder, rotary attention, data,
tokens, optimizer and schedule are the same. Experts have equal total and equal active widths; only routers' sizes
differ. GLaM's mixture is GShard's, here in every other layer. [What each step brought](lineage.md) compares them, each
at its best learning rate, with dense models of the same tokens, the same work and the same time.

| recipe | router · experts · dispatcher · balance | parameters, active |
|---|---|---|
"""

SIZES = """
## At the sizes of their papers

For counting and comparing; nothing of this size is allocated. Where the authors' code is public, a test compares each
recipe with their configuration field by field (`tests/unit/papers/published_fields.csv`); a recipe that differs says so
in a comment. *Active* are the parameters that one token passes, in the reading that the paper uses.

| recipe | published | counted | active, published | active, counted | reading |
|---|---|---|---|---|---|
"""


PRINTS = """
Where a published number cannot be right, or is matched only approximately:

- **Switch-XXL**: the paper's table says 64 experts; only 128 make its 395B (64 make 201B).
- **GShard**: 36684 and 12228 experts in all are misprints of 36,864 = 18 · 2048 and 12,288 = 6 · 2048. Its totals are
  rounded down, by 3 to 6 %, and exclude embeddings.
- **Switch-Large**: 26B is the count with plain feed-forward nets of width 4096, as in the authors' configuration; the
  gated ones of width 2816 in the paper's table make 27.1B. Base is plain there, too, with as many parameters.
- **GLaM**: the small models match with a vocabulary of 32,000, not 256,000. 20B for 1.7B/32E does not fit the other
  models (14.0B); 105B and 1.886B for 1.7B/256E are counted as 104.2B and 1.884B; 0.145B active for 0.1B/64E as 0.152B.
- **ST-MoE**: the totals are those of 24 layers with a dense part after each mixture (`dense_too`) and a head of its
  own, as in the authors' configuration.
- **DeepSeek-V2-Lite**: 2.4B active is 2.451B without the input embedding, rounded down.
"""


class Entry(NamedTuple):
    """A recipe of a paper, with its parameters counted."""

    name: str
    recipe: Recipe
    paper: Paper
    count: ParameterCount


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


def page() -> str:
    """The whole page."""
    every = papers()
    overview = "".join(f"{overview_row(e)}\n" for entries in every for e in entries if e.recipe.data)
    sections = "\n".join("\n".join(section(entries)) for entries in every)
    sizes = "".join(f"{size_row(e)}\n" for entries in every for e in entries if e.recipe.data is None)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    trained = "".join(f"{trained_row(name, numbers)}\n" for name, numbers in results.items())
    trained += verdict(results) + notes(results)
    field = [c for c in current().recipes if c.name.startswith("lineage/")]
    lineage = "".join(f"{field_row(component.name)}\n" for component in field)
    return f"{HEAD}{overview}{TRAINED}{trained}{FIELD}{lineage}{COMPONENTS}{sections}\n{SIZES}{sizes}{PRINTS}"


TIE = 0.01
"""A relative difference below this means nothing with one seed: with three the gap of one recipe varied by 2 %."""


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Which mixtures end ahead of their dense baselines, which behind, and which are too close to tell."""
    ends = {name: (r["curve"][-1][1], r["dense_curve"][-1][1]) for name, r in results.items() if r["dense_curve"]}
    gain = {name: (dense - moe) / dense for name, (moe, dense) in ends.items()}
    groups = {
        "Ahead of their dense baselines at equal tokens": {n: g for n, g in gain.items() if g >= TIE},
        f"Tied (less than {TIE:.0%} apart)": {n: g for n, g in gain.items() if abs(g) < TIE},
        "Behind": {n: g for n, g in gain.items() if g <= -TIE},
    }
    said = [
        f"{words}: {', '.join(f'`{name}` ({value:+.1%})' for name, value in group.items())}."
        for words, group in groups.items()
        if group
    ]
    return f"\n{' '.join(said)}\n"


def notes(results: dict[str, dict[str, Any]]) -> str:
    """What has changed since a recipe was trained, by recipes of which it is true."""
    found: dict[str, list[str]] = {}
    for name, numbers in results.items():
        if numbers.get("note"):
            found.setdefault(numbers["note"], []).append(f"`{name}`")
    return "".join(f"\n{', '.join(names)}: {note}.\n" for note, names in found.items())


def data_page(stored: str) -> str:
    """``data.md`` with its generated paragraph anew: the results of translating."""
    numbers = json.loads(RESULTS.read_text(encoding="utf-8"))["gshard"]
    ours, dense = numbers["scores"], numbers["comparison"]["dense_scores"]
    bits, dense_bits = numbers["comparison"]["moe"], numbers["comparison"]["dense"]
    apart = abs(bits - dense_bits) / dense_bits
    said = "too close for one seed to separate them" if apart < TIE else f"{apart:.1%} apart"
    paragraph = (
        f"`moekit train gshard` ({numbers['steps']} steps, one seed) ends with BLEU {ours['bleu']:.1f} and chrF "
        f"{ours['chrf']:.1f} of 100, its dense baseline\nwith {dense['bleu']:.1f} and {dense['chrf']:.1f}, on "
        f"{ours['scored_pairs']:.0f} pairs: both mostly write memorised fragments. Their bits per byte are\n"
        f"{bits:.3f} and {dense_bits:.3f}, {said}.\n"
    )
    before, _, rest = stored.partition(BEGIN)
    return f"{before}{BEGIN}{paragraph}{END}{rest.partition(END)[2]}"


def trained_row(name: str, numbers: dict[str, Any]) -> str:
    """Results of training one recipe."""
    ends = [f"{numbers['curve'][i][1]:.3f}" for i in (0, -1)]
    dense = f"{numbers['dense_curve'][-1][1]:.3f}" if numbers["dense_curve"] else "-"
    spread, over, dropped = "-", "-", "-"
    if numbers["max_violation"]:
        spread = " to ".join(f"{value:.2f}" for value in numbers["max_violation"])
        over, dropped = f"{numbers['validation']['max_violation']:.2f}", f"{numbers['dropped']:.1%}"
        if "dropped_tokens" in numbers:
            dropped += f" ({numbers['dropped_tokens']:.1%})"
    dense_scores = (numbers.get("comparison") or {}).get("dense_scores") or {}
    scores = [
        f"{key.replace('_', ' ')} {value:.3g}" + (f" ({dense_scores[key]:.3g})" if key in dense_scores else "")
        for key, value in (numbers.get("scores") or {}).items()
    ]
    cells = [numbers["metric"].replace("_", " "), *ends, dense, spread, over, dropped, ", ".join(scores)]
    return f"| `{name}` | {' | '.join(cells)} |"


def overview_row(e: Entry) -> str:
    """One recipe with data, in a line."""
    size = f"{rounded(e.count.total)}, {rounded(e.count.active())}"
    return f"| {e.paper.year} | {e.paper.title} | `{e.name}` | {parts(e.recipe)} | {size} | {e.paper.claim} |"


def field_row(name: str) -> str:
    """One recipe of ``lineage/``, in a line."""
    recipe = load(name)
    count = count_parameters(recipe)
    return f"| `{name}` | {parts(recipe)} | {rounded(count.total)}, {rounded(count.active())} |"


def parts(recipe: Recipe) -> str:
    """Router, experts, dispatcher and balancers of a recipe's mixtures, by name."""
    moe: Any = getattr(recipe.model, "moe", None)
    if moe is None:
        return "none: a dense model"
    names = [current().use_name(spec) for spec in (moe.router, moe.experts, moe.dispatcher)]
    if moe.shared is not None:
        names[1] += " + shared"
    names.append(", ".join(current().use_name(b) for b in moe.balancers.values()) or "none")
    return " · ".join(names)


def section(entries: list[Entry]) -> Iterator[str]:
    """One paper: where it appeared, its recipes and their components."""
    paper = entries[0].paper
    where = f"arXiv [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.where
    yield f"### {paper.year}: {paper.title}\n"
    yield f"{paper.authors.rstrip('.')}. {where}.\n"
    for e in entries:
        if e.recipe.data is not None:
            yield f"**`moekit train {e.name}`**: {e.recipe.summary}."
            yield f"{rounded(e.count.total)} parameters, {rounded(e.count.active())} active a token.\n"
            yield "| component | |\n|---|---|"
            yield from (f"| {part} | `{value}` |" for part, value in components(e.recipe))
            yield ""
    if at_size := [f"`{e.name}`" for e in entries if e.recipe.data is None]:
        yield f"At its size: {', '.join(at_size)}.\n"


def components(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The components of a recipe, as text."""
    model: Any = recipe.model
    yield "model", text_of(model, without=["moe", "attention", "ffn", "vocab", "init_std", "init_scale"])
    for name in ("attention", "ffn"):
        if getattr(model, name, None) is not None:
            yield name, text_of(getattr(model, name))
    for name in ("at", "router", "experts", "shared", "dispatcher", "encoder_dispatcher"):
        if getattr(model.moe, name, None) is not None:
            yield {"at": "mixture layers"}.get(name, name.replace("_", "'s ")), text_of(getattr(model.moe, name))
    for name, balancer in model.moe.balancers.items():
        yield f"balancer `{name}`", text_of(balancer)
    yield "objective", text_of(recipe.objective)
    yield "data", text_of(recipe.data)
    if recipe.start is not None:
        yield "starts from", text_of(recipe.start)


def size_row(e: Entry) -> str:
    """Published and counted parameters of one recipe."""
    bare = e.paper.total_reading == "without_either"
    total = e.count.without_embeddings if bare else e.count.total
    active = e.count.active(e.paper.reading or "both")
    note = READINGS[e.paper.reading or "both"] + ("; total without either" if bare else "")
    cells = [e.paper.total or "-", rounded_like(total, e.paper.total)]
    cells += [e.paper.active or "-", rounded_like(active, e.paper.active)]
    return f"| `{e.name}` | {' | '.join(cells)} | {note} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    DATA_PAGE.write_text(data_page(DATA_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE, DATA_PAGE)
