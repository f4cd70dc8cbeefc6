"""A plugin of one file, outside the repository: verb, callback, metric, resolver, hooks, and a kind of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_plugins
import pytest

SOURCE = '''
"""Everything that a plugin can add, in one file."""

import sys
from types import SimpleNamespace

from moekit import Component, Spec, hookimpl, option, slot
from moekit.component import Kind, Verb
from moekit.spec.fields import MetricInfo
from moekit.spec.kinds import CallbackSpec

MOEKIT_API = 2
EXAMPLES = "  moekit mix 3"
FAULT = "no fault"


class PaintSpec(Spec):
    kind = "paint"


class Oil(PaintSpec):
    thickness: float = option(1.0, "millimetres", gt=0)


class Brush(CallbackSpec):
    """Publishes how much paint the run has used."""

    paint: PaintSpec = slot("paint", "what it paints with")

    def metrics(self):
        return {"paint": MetricInfo(label="paint used", unit="ml")}


def oil(spec):
    return SimpleNamespace(thickness=spec.thickness)


def brush(spec):
    from lightning.pytorch import Callback

    from moekit import build

    class BrushCallback(Callback):
        def __init__(self):
            self.paint = build(spec.paint)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.publish({"train/paint": self.paint.thickness * trainer.global_step})

    return BrushCallback()


def square(number):
    return number * number


def add_arguments(parser):
    parser.add_argument("litres", type=int)


def run(args):
    if FAULT == "verb":
        raise ZeroDivisionError("no paint")
    print(f"{args.litres} litres of paint")
    return 0


@hookimpl
def moekit_kinds():
    return [Kind(name="paint", spec=PaintSpec, summary="what brushes paint with", plural="paint")]


@hookimpl
def moekit_components():
    return [
        Component(name="oil", spec=Oil, target=oil, summary="dries slowly"),
        Component(name="brush", spec=Brush, target=brush, summary="publishes the paint used"),
    ]


@hookimpl
def moekit_verbs():
    return [Verb(name="mix", target=__name__, summary="mix paint")]


@hookimpl
def moekit_resolvers():
    return {"acme.square": f"{__name__}:square"}


@hookimpl
def moekit_step_ended(run):
    if FAULT == "step":
        raise ZeroDivisionError("no paint")


@hookimpl
def moekit_run_ended(run):
    from moekit.training.run.hooks import ReportRow

    return [ReportRow("canvas", f"finished after {run.step} steps")]
'''

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def moekit(tmp_path: Path) -> Run:
    """``moekit`` in another process, with the plugin installed; ``fault`` makes a part of it fail."""

    def command(*words: str, fault: str = "no fault") -> subprocess.CompletedProcess[str]:
        site = tmp_path / fault.replace(" ", "_")
        if not site.exists():
            fake_plugins.install(site, "acme", SOURCE.replace('"no fault"', f'"{fault}"'))
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "CUDA_VISIBLE_DEVICES": ""}
        arguments = [sys.executable, "-m", "moekit", *words]
        return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return command


PAINTED = "trainer.callbacks={b: {use: brush, paint: {use: oil, thickness: '${acme.square:3}'}}}"
TRAIN = ("train", "jacobs1991", "trainer.max_steps=4", "trainer.val_check_interval=2", "--no-compare", PAINTED)


def test_the_plugin_adds_a_kind_components_a_verb_and_a_resolver(moekit: Run) -> None:
    listed = moekit("plugins")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "acme" in moekit("ls", "kinds").stdout
    assert moekit("ls", "paint").stdout.split()[:2] == ["paint", "oil"]
    assert moekit("mix", "3").stdout == "3 litres of paint\n"
    assert "mix paint" in moekit("help").stdout
    assert "thickness: 9.0" in moekit("config", "print", "jacobs1991", PAINTED).stdout
    wrong = moekit("config", "validate", "jacobs1991", PAINTED.replace("oil", "oli"))
    assert wrong.returncode == 2
    assert "unknown paint 'oli' (installed: oil)" in wrong.stderr


def test_a_run_has_its_callback_its_metric_and_its_row_of_the_report(moekit: Run, tmp_path: Path) -> None:
    done = moekit(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert "finished after 4 steps" in done.stdout
    assert "paint used" in done.stdout
    (metrics,) = tmp_path.glob("runs/jacobs1991/*/metrics.csv")
    rows = [line.split(",") for line in metrics.read_text().splitlines()]
    assert rows[-1][rows[0].index("train/paint")] in ("36.0", "36")


def test_an_exception_in_it_names_the_plugin_and_harms_no_run(moekit: Run) -> None:
    done = moekit(*TRAIN, fault="step")
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert "acme" in printed
    assert "moekit_step_ended" in printed
    assert "ZeroDivisionError: no paint" in printed
    failed = moekit("mix", "3", fault="verb")
    assert failed.returncode != 0
    assert "while running verb 'acme/mix'" in failed.stderr
