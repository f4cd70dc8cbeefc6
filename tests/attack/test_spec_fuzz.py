"""Random specs, most of them wrong: each loads, or is refused by a SpecError, however it is given.

A shipped recipe is changed in a few places (a value, a subtree, a text, a key), then given as a mapping, a config, a
file or overrides. Numbers are out of every range, texts are half interpolations, data is deep, wide or of odd types.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from moekit.errors import SpecError
from moekit.registry import current
from moekit.spec import dump, load, to_config, to_plain
from moekit.spec.tree import write

Keys = tuple[Any, ...]

NUMBERS = [
    *(0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, 10**400, 1e30, 2e7, 1e308, 5e-324, -0.0, 0.1, 1e-30),
    *(math.inf, -math.inf, math.nan, True, False, None),
]  # fmt: skip
TEXTS = [
    *("", " ", "???", "null", "topk", "dense", "glu", "moekit/topk", "routers/topk", "a/b/c", "1e5", "inf"),
    *("${", "${}", "${seed}", "${.}", "${..}", "${model}", "${model.dim}", "${data.vocab}", "${model.moe}", "${..dim}"),
    *("${oc.env:HOME}", "${oc.env:MOEKIT_UNSET_HERE}", "${oc.decode:'[1, 2'}", "${oc.create:'{a: 1}'}", "${nothing:1}"),
    *("\\${x}", "x${seed}y", "${a" * 40, "${" * 300 + "}" * 300, "\u2028", "\ud800", "\x00", "a\nb", "é" * 5000),
]  # fmt: skip
ODD = [object(), {1, 2}, 1j, b"bytes", (1, 2), Path("x"), {3: 4}, {None: 1}, {"": 1}, {"a.b": {"c": 1}}, {"use": 3}]
DEEP = ["[" * 330 + "]" * 330, "{a: " * 330 + "1" + "}" * 330]
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 10))]
)


def value(rng: random.Random, depth: int = 0) -> Any:
    """A value of any sort."""
    match rng.randrange(9 if depth < 3 else 5):
        case 0 | 1:
            return rng.choice(NUMBERS)
        case 2 | 3:
            return rng.choice(TEXTS)
        case 4:
            return rng.choice(ODD)
        case 5:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 6:
            return {
                str(rng.choice(["use", "a", "dim", "top_k", "count", "x y"])): value(rng, depth + 1) for _ in range(3)
            }
        case 7:
            return [[0] * rng.choice([1, 300, 20_000])]
        case _:
            out: Any = 1
            for _ in range(rng.choice([3, 60, 330])):
                out = [out] if rng.random() < 0.5 else {"a": out}
            return out


def paths(tree: Any, path: Keys = ()) -> list[Keys]:
    """The path of every part, down to the tenth level."""
    inner = len(path) < 10
    items = (
        tree.items()
        if isinstance(tree, dict) and inner
        else enumerate(tree)
        if isinstance(tree, list) and inner
        else ()
    )
    return [path, *(found for key, item in items for found in paths(item, (*path, key)))]


def changed(rng: random.Random, tree: Any) -> tuple[Any, list[str]]:
    """The tree with one to four changes, and the same changes as overrides."""
    overrides = []
    for _ in range(rng.randrange(1, 5)):
        *parents, key = rng.choice([path for path in paths(tree) if path])
        node = tree
        for parent in parents:
            node = node[parent]
        old = node[key]
        alike = 2 * old if isinstance(old, int | float) else old
        new = alike if rng.random() < 0.4 else value(rng)
        if isinstance(node, dict) and rng.random() < 0.3:
            key = rng.choice(["ues", "extends", "schema", "requires", "trainer", "a" * 300, str(key)[:-1], "use"])
        node[key] = new
        try:
            overrides.append(f"{'.'.join(map(str, [*parents, key]))}={write(new).strip()}")
        except Exception:  # not data that YAML can hold
            overrides.append(f"{'.'.join(map(str, [*parents, key]))}={rng.choice([*TEXTS, *DEEP, '&a [*a]', '!!x 1'])}")
    return tree, overrides


def attempt(rng: random.Random, recipe: str, folder: Path) -> str:
    """Loads one random spec; ``loaded`` or ``refused``. Any other exception is a defect."""
    tree, overrides = changed(rng, to_plain(load(recipe)))
    file = folder / "fuzz.yaml"
    source: Any = tree
    match rng.choice(["mapping", "config", "part", "file", "text", "overrides"]):
        case "config" | "part" as how:
            try:
                source = OmegaConf.create(tree) if how == "config" else OmegaConf.create({"x": tree}).x
            except Exception:  # OmegaConf itself takes no such data
                source = tree
            overrides = []
        case "file" | "text" as how:
            try:
                text = write(tree)
            except Exception:
                text = rng.choice([f"trainer: {DEEP[0]}", f"trainer: {DEEP[1]}", BOMB])
            if how == "text":
                at = rng.randrange(len(text) + 1)
                text = (
                    text[:at]
                    + rng.choice([*TEXTS, "\t", "- ", ": ", "{", "&a ", "*a ", "!!python/object:os.x "])
                    + text[at:]
                )
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
            source, overrides = str(file), []
        case "overrides":
            source = recipe
        case "mapping":
            overrides = []
    try:
        loaded = load(source, overrides)
    except SpecError as error:
        assert error.problems
        return "refused"
    assert load(to_config(loaded)) == loaded
    assert load(to_plain(loaded)) == loaded
    dump(loaded)
    return "loaded"


def fuzz(seed: int, count: int, folder: Path) -> dict[str, int]:
    """Loads many random specs; how many were loaded, and how many refused."""
    recipes = [component.name for component in current().recipes]
    seen = {"loaded": 0, "refused": 0}
    for i in range(count):
        rng = random.Random(seed * 1_000_003 + i)
        recipe = rng.choice(recipes)
        start = time.process_time()
        try:
            seen[attempt(rng, recipe, folder)] += 1
        except Exception as error:
            error.add_note(f"seed {seed}, spec {i}, from {recipe}")
            raise
        assert time.process_time() - start < 20, f"seed {seed}, spec {i}, from {recipe} takes too long"
    return seen


def test_a_random_spec_is_loaded_or_refused(tmp_path: Path) -> None:
    seen = fuzz(1, 20, tmp_path)
    assert seen["refused"] > 5 and seen["loaded"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_thousands_of_random_specs_are_loaded_or_refused(seed: int, tmp_path: Path) -> None:
    fuzz(seed, 2_000, tmp_path)


@pytest.mark.parametrize("text", [BOMB, f"trainer: {DEEP[0]}", f"trainer: {DEEP[1]}"], ids=["aliases", "lists", "maps"])
def test_a_small_text_of_endless_data_is_refused_before_it_is_built(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"more than 10,000 keys and items|nested too deeply"):
        load(str(file))
    with pytest.raises(SpecError, match=r"more than 10,000 keys and items|nested too deeply|not valid YAML"):
        load("gshard", [f"trainer={text.removeprefix('trainer: ')}"])


@pytest.mark.parametrize("depth", ["2e7", "1e15", "1e30", "1e300", "9" * 4000, "0x" + "f" * 9000])
def test_an_absurd_depth_costs_nothing(depth: str) -> None:
    start = time.process_time()
    try:
        assert load("gshard", [f"model.depth={depth}"]).model.depth == float(depth)
    except SpecError as error:
        assert "depth: " in str(error) or "not a YAML int" in str(error)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "override",
    ["optimizer.lr=.inf", "model.init_std=1e999", "trainer.gradient_clip_val=.inf", "objective.mtp_weight=-.inf"],
)
def test_infinity_is_refused_where_a_number_is_meant(override: str) -> None:
    with pytest.raises(SpecError, match=r"-?inf is not finite"):
        load("deepseek_v3", [override])
