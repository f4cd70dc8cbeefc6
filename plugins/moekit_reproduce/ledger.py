"""The ledger: a JSON file of each paper with what was found, and a page that is generated from all. Torch-free."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, get_args

from moekit.errors import MoekitError
from moekit.files import read_regular, replace_text
from moekit_reproduce.store import LARGEST, write_json
from moekit_reproduce.study import Found, Seen, Study
from moekit_reproduce.verdict import Verdict, interval, verdict

PAGE = "ledger.md"
FOLDER = "ledger"
VERDICTS: Final = get_args(Verdict)

HEAD = """\
# Ledger of claims

What papers claim, in a small honest form, measured by `moekit reproduce`, which generates this page from the JSON files
in `ledger/`.

```console
$ moekit reproduce --list
```

```bash
moekit reproduce switch              # one paper; interrupted, the same command resumes
moekit reproduce --all --ledger docs # this page
```

The models have some 190,000 active parameters and see some 300,000 bytes of text: a claim that does not hold here may
hold at the paper's size, and one that holds here may not.

**The rule.** Every system is trained with the same seeds, on the same batches. A contrast is computed seed by seed.
Of its mean, Student's t gives the 90 % interval: each end is wrong in 5 % of cases. A claim *holds* if the whole
interval is at its threshold or above, and above 0 unless the threshold is negative; *direction only*: it is not, but
all of it is above 0; *does not hold here*: all of it is below the threshold, or at 0 or below where the claim is of a
difference; *too noisy to say*: anything else. The threshold was written before the run: half of the paper's effect
where the paper has a figure that can be carried over, else 0; for a claim that something costs nothing, minus the
cost that counts as nothing. Of so many verdicts, some are wrong.

**Tuning.** Each system's learning rate is the best of a grid, and beyond its end while the best is there (twice at
most), with seeds that are not measured. A system that takes another's rate says so; one without a rate here has its
recipe's. Nothing else is tuned.

**Plots.** A dot is a seed, and a grey line joins the dots of one seed: systems are compared along it. A diamond is the
mean, with its own 90 % interval.

**Work.** `multiply-adds` are those of a token by its active parameters, without the input embedding; `executed` those
that were computed in training, without pairs that were dropped or not sent.

"""


def row_of(
    name: str,
    study: Study,
    found: Mapping[str, Found],
    seen: Sequence[Seen],
    *,
    command: str,
    about_run: Mapping[str, Any],
) -> dict[str, Any]:
    """What is written about a paper, as plain values.

    Args:
        name: of the claim's component.
        study: what was to be measured.
        found: by arm.
        seen: the same by seed.
        command: that measured it.
        about_run: machine, versions, whether it was the quick form.
    """
    claims = []
    for prediction in study.predictions:
        values = [float(prediction.contrast(each)) for each in seen]
        spread = interval(values)
        claims.append(
            {
                "claim": prediction.claim,
                "paper": prediction.paper,
                "source": prediction.source,
                "measure": prediction.measure,
                "at_least": prediction.at_least,
                "mean": spread.mean,
                "low": spread.low,
                "high": spread.high,
                "values": values,
                "verdict": verdict(spread, prediction.at_least),
            }
        )
    arms = []
    for arm in study.arms:
        of = found[arm.name]
        numbers = {
            key: [float(values[key]) for values in of.values.values() if key in values]
            for key in (*study.columns, "total", "work", "executed")
        }
        arms.append(
            {
                "name": arm.name,
                "rate": of.rate,
                "rate_of": arm.rate_of,
                "factor": arm.factor,
                "tried": {f"{rate:g}": score for rate, score in of.tried.items()},
                "values": numbers,
            }
        )
    return {
        "name": name,
        "title": study.title,
        "about": study.about,
        "columns": dict(study.columns),
        "claims": claims,
        "arms": arms,
        "seeds": len(seen),
        "command": command,
        "minutes": sum(of.seconds for of in found.values()) / 60,
        "cpu_minutes": sum(of.cpu_seconds for of in found.values()) / 60,
        **about_run,
    }


def write(folder: Path, row: Mapping[str, Any]) -> Path:
    """Writes a paper's JSON, generates the page from those of all papers, and returns the page's path.

    Raises:
        MoekitError: the JSON of another paper is damaged.
        OSError: the disk is full, or the like.
    """
    write_json(folder / FOLDER / f"{row['name']}.json", row)
    page = folder / PAGE
    replace_text(page, page_of(rows_in(folder)))
    return page


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """What the JSON files of a ledger hold, oldest paper first.

    Raises:
        MoekitError: one is damaged.
    """
    rows = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            rows.append(json.loads(read_regular(path, LARGEST)))
        except (OSError, ValueError) as error:
            raise MoekitError(
                f"{path} is damaged: {error}\n  delete it, and run moekit reproduce {path.stem}"
            ) from error
    return sorted(rows, key=lambda row: (year_of(row["title"]), row["title"]))


def year_of(paper: str) -> str:
    """The year in the name of a paper; 9999 without one, so that such papers come last."""
    return next(iter(re.findall(r"\b(?:19|20)\d\d\b(?!\.\d)", paper)), "9999")


def page_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page, from what the JSON files hold."""
    lines = [*_summary(rows), *(line for row in rows for line in _section(row))]
    return HEAD + "\n".join(lines).rstrip() + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"| paper | {' | '.join(VERDICTS)} |\n|---|{'---|' * len(VERDICTS)}"
    for row in rows:
        found = [claim["verdict"] for claim in row["claims"]]
        counts = " | ".join(str(found.count(each) or "") for each in VERDICTS)
        yield f"| {row['title']} | {counts} |"
    yield ""


def _section(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {row['title']}\n"
    if row.get("quick"):
        yield "**Quick form: it shows that everything runs, and says nothing about the paper.**\n"
    yield f"{row['about']}\n"
    yield "| claim | the paper, source | here: mean (90 % interval) | threshold | verdict |\n|---|---|---|---|---|"
    for claim in row["claims"]:
        paper = f"{claim['paper']} ({claim['source']})"
        here = f"{claim['measure']}: {number(claim['mean'])} ({number(claim['low'])} to {number(claim['high'])})"
        yield f"| {claim['claim']} | {paper} | {here} | {claim['at_least']:g} | **{claim['verdict']}** |"
    yield ""
    heads = [*row["columns"].values(), "parameters", "multiply-adds", "executed"]
    yield f"| system | rate | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}"
    for arm in row["arms"]:
        cells = [spread(arm["values"][key]) for key in row["columns"]]
        cells += [_thousands(arm["values"][key]) for key in ("total", "work", "executed")]
        yield f"| {arm['name']} | {_rate(arm)} | {' | '.join(cells)} |"
    yield ""
    for picture in row["pictures"]:
        yield f"![What was measured for {row['name']}]({picture})\n"
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    yield (
        f"`{row['command']}`: {row['seeds']} seeds; {row['minutes']:.1f} minutes, {row['cpu_minutes']:.1f} of them "
        f"processor time; {row['machine']}; {versions}.\n"
    )


def number(value: Any) -> str:
    """A number to three digits; ``±inf`` and ``nan`` as they are."""
    value = float(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.2e}")))))
    return f"{value:.{min(digits, 5)}f}"


def spread(values: Sequence[Any]) -> str:
    """Mean ± standard deviation; empty for no values."""
    numbers = [float(value) for value in values]
    if not numbers:
        return ""
    if not all(map(math.isfinite, numbers)):
        return "not finite"
    digits = 4 if max(map(abs, numbers)) < 10 else 1
    deviation = stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{fmean(numbers):.{digits}f} ± {deviation:.{digits}f}"


def _thousands(values: Sequence[Any]) -> str:
    return f"{fmean(map(float, values)):,.0f}" if values else ""


def _rate(arm: Mapping[str, Any]) -> str:
    if arm["rate"] is None:
        return ""
    factor = f", times {arm['factor']:g}" if arm["factor"] != 1 else ""
    if arm["rate_of"]:
        return f"{arm['rate']:g} (of {arm['rate_of']}{factor})"
    return f"{arm['rate']:g}" + (f" of {', '.join(arm['tried'])}" if arm["tried"] else "")
