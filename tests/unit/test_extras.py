"""Packages that moekit can do without: what happens when one is missing, and which command is printed."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from moekit import train
from moekit.cli import main
from moekit.extras import MissingPackage, lacking, require
from moekit.registry import build
from moekit_data import Bleu, BytePairs
from moekit_lightning import MLflow, WandB

TOP = Path(__file__).parents[2]
EXTRAS = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes packages, and the modules of moekit that import them, as if they were not installed."""

    def block(*packages: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            monkeypatch.delitem(sys.modules, name)
        for name in packages:
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("moekit_lightning.plots", "moekit_data.decision_regions.picture", "moekit_data.bleu.picture"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    return block


def test_a_missing_package_is_reported_with_what_needs_it_and_the_command() -> None:
    assert lacking("json", "no_such_package") == ["no_such_package"]
    require("plots", "a plot", "json")
    said = r"^a plot needs nope1 and nope2, which moekit does not install by itself\n  pip install 'moekit\[plots\]'$"
    with pytest.raises(MissingPackage, match=said):
        require("plots", "a plot", "json", "nope1", "nope2")


@pytest.mark.parametrize(
    ("spec", "context", "package", "extra"),
    [
        (BytePairs(vocab=300), (), "tokenizers", "tokenizers"),
        (Bleu(), (), "sacrebleu", "translation"),
        (WandB(), (None,), "wandb", "wandb"),
        (MLflow(), (None,), "mlflow", "mlflow"),
    ],
)
def test_a_component_says_which_extra_it_needs_before_anything_is_trained(
    without: Callable[..., None], spec: object, context: tuple[object, ...], package: str, extra: str
) -> None:
    without(package)
    with pytest.raises(MissingPackage, match=rf"needs {package}, .*\n  pip install 'moekit\[{extra}\]'"):
        build(spec, *context)


SMALL = ["model.dim=16", "data.megabytes=0.1", "data.seq=32", "data.batch=2", "trainer.max_steps=2"]


@pytest.mark.parametrize(
    ("recipe", "options"), [("base/language_model", SMALL), ("jacobs1991", ["trainer.max_steps=2"])]
)
def test_a_run_without_matplotlib_and_tensorboard_ends_well_and_says_how_to_have_them(
    recipe: str, options: list[str], tmp_path: Path, without: Callable[..., None], capsys: Captured
) -> None:
    without("matplotlib", "tensorboard")
    run = train(recipe, options, out=tmp_path, compare=False)
    assert (run.path / "summary.json").is_file() and not list(run.path.rglob("*.png"))
    assert not (run.path / "tensorboard").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "plots none, without matplotlib: pip install 'moekit[plots]'" in said
    assert "tensorboard none, without tensorboard: pip install 'moekit[tensorboard]'" in said
    assert "pictures" not in said


@pytest.mark.parametrize("words", [["reproduce", "switch", "--quick"], ["report", "nothing", "--pictures", "here"]])
def test_a_verb_that_draws_says_so_before_it_works(
    words: list[str], without: Callable[..., None], capsys: Captured
) -> None:
    without("matplotlib")
    assert main(words) == 2
    assert "needs matplotlib, which moekit does not install by itself\n  pip install 'moekit[plots]'" in (
        capsys.readouterr().err
    )


NOT_OF_USERS = {"all", "test", "dev", "docs", "examples"}


def test_every_extra_that_a_message_names_exists_and_all_has_every_extra_of_users() -> None:
    code = "\n".join(path.read_text() for room in ("moekit", "plugins") for path in (TOP / room).rglob("*.py"))
    named = {*re.findall(r"\b(?:require|install)\([\"'](\w+)[\"']", code), *re.findall(r"'moekit\[(\w+)\]'", code)}
    assert {"plots", "tokenizers", "hf"} <= named <= EXTRAS.keys()
    (everything,) = EXTRAS["all"]
    assert {*everything.removeprefix("moekit[").removesuffix("]").split(",")} == EXTRAS.keys() - NOT_OF_USERS


def test_no_module_needs_an_optional_package_to_be_imported_but_those_that_draw() -> None:
    optional = "matplotlib|tensorboard|tokenizers|wandb|mlflow|sacrebleu|polib|django|transformers"
    found = {
        path.relative_to(TOP).as_posix()
        for room in ("moekit", "plugins")
        for path in (TOP / room).rglob("*.py")
        if re.search(rf"^(?:from|import) (?:{optional})\b", path.read_text(), re.MULTILINE)
    }
    drawing = {"moekit_data/bleu/picture", "moekit_data/decision_regions/picture", "moekit_lightning/plots"}
    drawing |= {"moekit_report/pictures", "moekit_reproduce/plot"}
    assert found == {f"plugins/{name}.py" for name in drawing}
