"""Every benchmark of a table measures something small, stores it and shows it on a page, by the command of the docs."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
import pytest
import torch

BENCHMARKS, DOCS = measured.TOP / "benchmarks", measured.FOLDER
QUICK = {"third_party_experts": "third_party_experts.py small --rounds 2"}
SLOW = {
    "decoding": "decoding.py --lengths 20 --rounds 1",
    "few_pairs": "few_pairs.py --rounds 2 --calls 1",
    "first_weights": "first_weights.py deepseek_v3",
    "growth": "growth.py --ranks 2 --H 16 32 --D 16 --T 32 --rounds 2",
    "hf_import": "hf_import.py --gigabytes .2 --rounds 1",
    "init_scale": "init_scale.py glam --steps 2",
    "learning_rates": "learning_rates.py glam trainer.max_steps=2 --rates 1e-3 2e-3",
    "memory_returned": "steps_since.py --since HEAD --freed --rounds 1 --steps 2 --threads 1 --recipe switch",
    "ranks": "ranks.py --rounds 1 --steps 1",
    "seeing_step": "seeing.py step switch --steps 4",
    "startup": "startup.py --runs 1",
    "steps": "steps.py --rounds 1 --recipes switch",
    "steps_of_variants": "steps.py --variants --rounds 1 --recipes switch",
    "steps_since": "steps_since.py --since HEAD --rounds 1 --steps 2 --threads 1 --recipe switch --also seed=1",
    "vowels": "jacobs1991.py",
    # seeing_page needs a browser, decoding_against and steps_of_libraries transformers
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Benchmarks set the number of threads of their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)], ids=lambda name: name
)
def test_a_benchmark_writes_its_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *options = (QUICK | SLOW)[name].split()
    page = tmp_path / "page.md"
    page.write_text(f"<!-- written by benchmarks/{script}: {name} -->\n<!-- end -->\n", encoding="utf-8")
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    monkeypatch.setattr(measured, "PAGES", (page,))
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / script), *options, "--docs"])
    loaded(BENCHMARKS / script).main()
    made = measured.stored(name)
    assert made["command"].startswith(f"python benchmarks/{script} ")
    assert len(made["rows"]) > 0
    assert list(numbers(made["rows"]))
    assert measured.text(made) in page.read_text(encoding="utf-8")
    shown = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))
    columns = {name.replace("deepseek_v3", script_recipe(options)): text for name, text in shown["columns"].items()}
    assert made["columns"] == columns, f"the script has other columns: {shown['command']}"


def script_recipe(options: list[str]) -> str:
    """The recipe that is measured here, which may name a column; deepseek_v3 for most."""
    return options[options.index("--recipes") + 1] if "--recipes" in options else "deepseek_v3"


def loaded(script: Path) -> Any:
    """A script as a module; tests have modules of the same names."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def numbers(value: Any) -> Iterator[float]:
    """The measured numbers in a value."""
    if isinstance(value, float):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from numbers(item)
