"""What a report says in words: what is wrong with the routing of a run, since when, and which key to turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moekit.training.run.metrics_log import tenths
from moekit_report.reading import STARVED, LayerLog
from moekit_report.specialisation import Specialisation

DROPPED = 0.01
CHANGING = 0.3
GROWING = 2.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding.

    Attributes:
        kind: what it is about.
        level: ``good``, ``note`` or ``warning``.
        text: a sentence.
        key: what to change, as overrides of the recipe; empty if there is nothing to change.
    """

    kind: str
    level: str
    text: str
    key: str = ""

    def plain(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


def findings(
    train: Mapping[str, LayerLog],
    validation: Mapping[str, LayerLog],
    recipe: Mapping[str, Any],
    special: Mapping[str, Specialisation] | None = None,
) -> list[Finding]:
    """All findings about routing, warnings first.

    Args:
        train, validation: the record of every layer.
        recipe: as plain values, for the names of keys.
        special: the result of the permutation test; None if it was not run.
    """
    out: list[Finding] = []
    for name, log in train.items():
        out += _starved(name, log, recipe)
        out += _dropped(name, log, recipe)
        out += _growing(name, log, recipe)
    out += _changing(validation)
    if train and not any(each.kind == "starved" for each in out):
        text = f"Every expert of every layer gets at least {STARVED:.0%} of a fair share at the end of training."
        out.append(Finding(kind="load", level="good", text=text))
    if special is not None:
        out += _special(special)
    order = ("warning", "note", "good")
    return sorted(out, key=lambda each: order.index(each.level))


def _starved(name: str, log: LayerLog, recipe: Mapping[str, Any]) -> list[Finding]:
    starved_XE = log.share_XE < STARVED
    count = int(starved_XE[-1].sum())
    if not count:
        return []
    always = np.cumprod(starved_XE[::-1], axis=0)[::-1].astype(bool)  # starved from this row to the end
    since = int(log.step_X[np.argmax(always.any(1))])
    E = starved_XE.shape[1]
    verb = "expert gets" if count == 1 else "experts get"
    text = f"Layer {name}: {count} of {E} {verb} less than {STARVED:.0%} of a fair share, the first since step {since}."
    return [Finding(kind="starved", level="warning", text=text, key=balance_key(recipe))]


def _dropped(name: str, log: LayerLog, recipe: Mapping[str, Any]) -> list[Finding]:
    dropped, pairs = (tenths(log.values[key])[1].sum() for key in ("dropped_pairs", "pairs"))
    if not pairs or dropped / pairs < DROPPED:
        return []
    lost, tokens = (tenths(log.values[key])[1].sum() for key in ("dropped_tokens", "tokens"))
    text = (
        f"Layer {name}: {dropped / pairs:.1%} of pairs are dropped at the end, and {lost / tokens:.1%} of tokens lose"
    )
    at = _find(recipe, "dispatcher")
    options = [key for key in ("factor",) if at and at[1].get(key) is not None]
    key = f"raise {at[0]}.{options[0]} (now {at[1][options[0]]})" if at and options else "use a dropless dispatcher"
    return [Finding(kind="dropped", level="warning", text=f"{text} all their experts.", key=key)]


def _growing(name: str, log: LayerLog, recipe: Mapping[str, Any]) -> list[Finding]:
    norm = log.values["logit_norm"]
    if len(norm) < 20:
        return []
    first, before, last = (
        float(np.mean(part)) for part in (tenths(norm)[0], norm[-len(norm) // 4 :][: len(norm) // 8], norm[-3:])
    )
    if last < GROWING * first or last < 1.05 * before:
        return []
    at = _find(recipe, "balancers")
    key = f"add {at[0] if at else 'balancers'}.z={{use: z_loss, weight: 1.0e-3}}"
    text = f"Layer {name}: the norm of the router's logits grew from {first:.3g} to {last:.3g}, and still grows."
    return [Finding(kind="logits", level="note", text=text, key=key)]


def _changing(validation: Mapping[str, LayerLog]) -> list[Finding]:
    last = {name: float(log.values["changed"][-1]) for name, log in validation.items() if len(log.values["changed"])}
    most = {name: share for name, share in last.items() if share > CHANGING}  # not of NaN
    if not most:
        return []
    name = max(most, key=lambda each: most[each])
    text = (
        f"{len(most)} of {len(last)} layers: more than {CHANGING:.0%} of tokens changed their first expert between the "
        f"last two validations; most of all layer {name}: {most[name]:.0%}."
    )
    return [Finding(kind="changes", level="note", text=text, key="train longer, or let the learning rate decay")]


def _special(special: Mapping[str, Specialisation]) -> list[Finding]:
    found = {name: each for name, each in special.items() if each.is_found}
    if not found:
        text = "No layer sends the domains to different experts beyond chance (permutation test, level 1 %)."
        return [Finding(kind="domains", level="note", text=text)]
    name, best = max(found.items(), key=lambda each: each[1].bits)
    most = np.log2(len(best.share_XE))
    text = (
        f"{len(found)} of {len(special)} layers send the domains to different experts (permutation test, level 1 %); "
        f"most of all layer {name}: {best.bits:.2f} of {most:.2f} bits."
    )
    return [Finding(kind="domains", level="good", text=text)]


def balance_key(recipe: Mapping[str, Any]) -> str:
    """What to change for a more even load: the first balancer's rate or weight, or a new balancer."""
    at = _find(recipe, "balancers")
    for name, balancer in (at[1] if at else {}).items():
        for option in ("rate", "weight"):
            if isinstance(balancer, Mapping) and balancer.get(option) is not None:
                return f"raise {at[0] if at else ''}.{name}.{option} (now {balancer[option]:g})"
    return f"add a balancer: {at[0] if at else 'balancers'}.load={{use: load_balance, weight: 1.0e-2}}"


def _find(tree: Mapping[str, Any], key: str, at: str = "") -> tuple[str, Mapping[str, Any]] | None:
    """The path and value of the first mapping below a key."""
    for name, value in tree.items():
        path = f"{at}.{name}" if at else name
        if isinstance(value, Mapping):
            if name == key:
                return path, value
            if inner := _find(value, key, path):
                return inner
    return None
