"""The options of the Trainer that a spec may set, against the Trainer itself."""

from __future__ import annotations

import inspect
import re
from typing import get_args

import lightning
import pytest
from lightning.fabric import connector
from pages import whole

from moekit import SpecError
from moekit.spec import dump, load
from moekit.spec.fields import fields_of, members
from moekit.spec.recipe import TrainerSpec


def test_every_option_of_lightning_is_offered_or_refused_with_a_reason() -> None:
    """A release of Lightning with another option fails here."""
    offered, refused = set(fields_of(TrainerSpec)), set(TrainerSpec.refused)
    assert offered.isdisjoint(refused)
    assert offered | refused == set(inspect.signature(lightning.Trainer).parameters)


@pytest.mark.parametrize("name", TrainerSpec.refused)
def test_what_moekit_sets_is_refused_with_the_reason(name: str) -> None:
    message = f"'trainer.{name}' is not for a spec: {TrainerSpec.refused[name]}\n  at trainer.{name}"
    with pytest.raises(SpecError, match=whole(message)):
        load({"model": "bag", "trainer": {name: True}})
    with pytest.raises(TypeError, match=re.escape(TrainerSpec.refused[name])):
        TrainerSpec(**{name: True})  # type: ignore[arg-type]


def test_the_precisions_are_those_of_lightning() -> None:
    (precision,) = members(fields_of(TrainerSpec)["precision"].type)
    known = (*get_args(connector._PRECISION_INPUT_STR), *get_args(connector._PRECISION_INPUT_STR_ALIAS))
    assert get_args(precision) == known


def test_defaults_are_those_that_lightning_would_take_or_say_nothing() -> None:
    """``None`` leaves a value to moekit or to Lightning; the others differ only where a run needs another."""
    ours = {name: getattr(TrainerSpec(), name) for name in fields_of(TrainerSpec)}
    theirs = {name: p.default for name, p in inspect.signature(lightning.Trainer).parameters.items()}
    other = {name: value for name, value in ours.items() if value is not None and value != theirs[name]}
    assert other == {
        "max_steps": 1000, "devices": 1, "callbacks": {}, "logger": {}, "num_sanity_val_steps": 0,
        "enable_checkpointing": True, "enable_progress_bar": True, "enable_model_summary": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("precision", "bf16-mixd", "is none of its choices\n  at trainer.precision\n  expected one of transformer-"),
        ("precision", "bf16-mixd", "\n  did you mean 'bf16-mixed'?"),
        ("max_steps", 0, "max_steps: 0 is out of range\n  at trainer.max_steps\n  expected an integer >= 1"),
        ("max_step", 5, "'trainer' has no option 'max_step'\n  at trainer.max_step"),
        ("num_nodes", True, "num_nodes: true is not an integer"),
        ("accumulate_grad_batches", "two", "accumulate_grad_batches: 'two' is not an integer"),
        ("accumulate_grad_batches", -1, "accumulate_grad_batches: -1 is out of range"),
        ("gradient_clip_val", "much", "gradient_clip_val: 'much' is not a number"),
        ("gradient_clip_val", -0.5, "gradient_clip_val: -0.5 is out of range"),
        ("gradient_clip_algorithm", "norms", "did you mean 'norm'?"),
        ("val_check_interval", 0, "val_check_interval: 0 is out of range"),
        ("val_check_interval", 0.5, "val_check_interval: 0.5 is not an integer"),
        ("limit_val_batches", -1, "limit_val_batches: -1 is out of range"),
        ("strategy", "shardedd", "unknown strategy 'shardedd'"),
        ("strategy", {"ep": 2}, "'use' is missing: it names the strategy\n  at trainer.strategy"),
        ("callbacks", ["ema"], "where a named map of callbacks belongs"),
        ("logger", {"mine": True}, "logger: true is not a component\n  at trainer.logger.mine"),
    ],
)
def test_values_that_cannot_work_are_reported_with_all_other_mistakes(name: str, value: object, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        load({"model": "bag", "trainer": {name: value}, "seed": -1})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("precision", 32, "32"), ("precision", "16", "16"), ("precision", "64-true", "64-true"),
        ("precision", None, None), ("gradient_clip_val", 0, 0.0), ("gradient_clip_val", 1.5, 1.5),
        ("accumulate_grad_batches", None, 1), ("devices", "auto", "auto"), ("devices", [0, 1], [0, 1]),
        ("limit_val_batches", 1, 1), ("limit_val_batches", None, None), ("fast_dev_run", True, True),
        ("fast_dev_run", 3, 3), ("deterministic", "warn", "warn"), ("deterministic", True, True),
        ("max_time", "00:01:00:00", "00:01:00:00"), ("max_time", {"hours": 1}, {"hours": 1}),
    ],
)  # fmt: skip
def test_values_that_the_trainer_takes(name: str, given: object, read: object) -> None:
    recipe = load({"model": "bag", "trainer": {name: given}})
    found = getattr(recipe.trainer, name)
    assert found == read and type(found) is type(read)
    assert load(_file(dump(recipe))) == recipe


@pytest.mark.parametrize("limit", [0.5, 1.0])
def test_a_fraction_of_the_validation_set_is_refused(limit: float) -> None:
    """Lightning would end with an error, as the set has no length; it reads 1.0 as all batches, and 1 as one."""
    with pytest.raises(SpecError, match=re.escape(f"limit_val_batches={limit} is not a number of batches")):
        load({"model": "bag", "trainer": {"limit_val_batches": limit}})


def _file(text: str) -> dict[str, object]:
    from moekit.spec.tree import read

    tree: dict[str, object] = read(text, "dumped").data
    return tree


@pytest.mark.usefixtures("real_plugins")
def test_a_callback_that_needs_whole_weights_is_refused_with_shards() -> None:
    options = ["trainer.callbacks.mean.use=ema", "trainer.strategy=sharded"]
    with pytest.raises(SpecError, match=r"callback 'mean' \(EMA\) needs whole weights, but the strategy shards them"):
        load("deepseek_v3", options)
    assert load("deepseek_v3", [options[0], "trainer.strategy=ddp"]).trainer.shards is False
    assert load("deepseek_v3", options[1:]).trainer.shards is True


@pytest.mark.usefixtures("real_plugins")
def test_a_static_graph_and_accumulation_are_refused() -> None:
    """torch's reducer died of an internal assertion in the first step."""
    options = ["trainer.strategy={use: ddp, static_graph: true}", "trainer.accumulate_grad_batches=2"]
    with pytest.raises(SpecError, match=r"static_graph cannot be used with accumulate_grad_batches=2(?s:.*)at trainer"):
        load("deepseek_v3", options)
    load("deepseek_v3", options[:1])
    load("deepseek_v3", ["trainer.strategy=ddp", options[1]])


def test_an_option_of_the_trainer_at_the_top_has_its_place_reported() -> None:
    with pytest.raises(SpecError, match=r"did you mean 'trainer\.max_steps'\?"):
        load({"model": "bag", "max_steps": 3})
