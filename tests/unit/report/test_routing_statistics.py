"""Routing statistics equal a recount in loops over saved decisions, in training and validation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decisions import SaveDecisions, close, decisions_of
from lightning.pytorch.callbacks import Callback
from ranks import run_forked

import moekit
from moekit.contracts import Batch, LayerReport, ModelOutput
from moekit.errors import MoekitError
from moekit.routing import ExpertChoice, TokenChoice
from moekit.run import Run
from moekit.tables import Table
from moekit_report.reading import layer_logs
from moekit_report.routing.classes import CLASSES
from moekit_report.routing.module import RoutingRecorder
from moekit_report.routing.naive import Decision, Recount, changed, dropped, max_violation, percentile, recount
from moekit_report.routing.recording import VALIDATION, Passes
from moekit_report.routing.recording import columns as columns_of
from moekit_report.routing.sums import COUNTS, Sent, pairs_EE

SCRIPT = Path(__file__).with_name("routing_rank.py")
Make = Callable[..., dict[str, Any]]


def rows(table: Table, **at: Any) -> Table:
    """The rows where columns have these values."""
    keep = np.all([table[name] == value for name, value in at.items()], axis=0)
    return {name: column[keep] for name, column in table.items()}


def check(found: dict[str, Table], at: dict[str, Any], expected: Recount, domains: list[str]) -> None:
    """Compares the rows of one layer at one step with a recount: counts exactly, means up to rounding."""
    experts = rows(found["experts"], **at)
    assert experts["expert"].tolist() == list(range(len(expected.load)))
    assert experts["load"].tolist() == expected.load
    assert close(experts["importance"], expected.importance)
    (layer,) = [
        dict(zip(t, v, strict=True)) for t in [rows(found["layers"], **at)] for v in zip(*t.values(), strict=True)
    ]
    counted = {name: layer[name] for name in COUNTS if not name.startswith("dropped")}
    assert counted == {name: expected.counts[name] for name in counted}
    for name, value in expected.means.items():
        assert close(layer[name], value), name
    log = layer_logs(found, at["part"])[at["layer"]]
    row = log.step_X.tolist().index(at["step"])
    assert log.max_violation_X[row] == pytest.approx(max_violation(expected.load), abs=1e-12)
    assert log.percentiles((10, 50, 90))[row] == pytest.approx([percentile(expected.load, q) for q in (10, 50, 90)])
    assert log.dead_X[row] == expected.load.count(0)
    if at["part"] == "val":
        pairs = rows(found["pairs"], **at)
        got = {
            (int(a), int(b)): int(n) for a, b, n in zip(pairs["first"], pairs["second"], pairs["tokens"], strict=True)
        }
        assert got == dict(expected.pairs)
        for table, label, names, counts in (
            ("domains", "domain", domains, expected.domains), ("classes", "class", CLASSES, expected.classes),
        ):  # fmt: skip
            by = rows(found[table], **at)
            got = {
                (names.index(name), int(e)): int(n)
                for name, e, n in zip(by[label], by["expert"], by["load"], strict=True)
                if n
            }
            assert got == dict(counts)


def check_run(
    run: Run, saved: SaveDecisions, logged: list[int], validated: list[int], factor: float | None = None
) -> None:
    """Compares everything that was recorded with a recount; ``factor`` is that of the experts' capacity."""
    found = run.routing
    assert run.module.data is not None
    run.module.data.prepare()
    domains = list(run.module.data.domain_names())
    assert len(domains) == 2
    steps = [("train", step) for step in logged] + [("val", step) for step in validated]
    layers = ["blocks.1.ffn", "blocks.2.ffn"]
    assert sorted(set(zip(found["layers"]["part"], found["layers"]["step"], strict=True))) == sorted(steps)
    before: dict[str, list[Decision]] = {}
    for part, step in steps:
        assert sorted(saved.decisions[part, step]) == layers
        for name in layers:
            decisions = saved.decisions[part, step][name]
            at = {"part": part, "step": step, "layer": name}
            check(found, at, recount(decisions), domains)
            layer = rows(found["layers"], **at)
            assert layer["dropped_pairs"].tolist() == [sum(saved.dropped[part, step][name])]
            assert layer["dropped_tokens"].tolist() == [sum(saved.dropped[part, step][f"{name} tokens"])]
            if factor is not None:
                lost, start = [], 0
                for size in saved.passes[part, step][name]:
                    slots = min(math.ceil(factor * 2 * size / 4), size)  # two choices of four experts
                    lost.append(dropped(decisions[start : start + size], slots))
                    start += size
                pairs, tokens = (sum(each) for each in zip(*lost, strict=True))
                assert (layer["dropped_pairs"][0], layer["dropped_tokens"][0]) == (pairs, tokens)
            bias = decisions[0].bias  # before a step; a validation has the same before and after
            if part == "val" and bias:
                assert rows(found["experts"], **at)["bias"].tolist() == list(bias)
            if part == "val":
                expected = changed(before[name], decisions) if name in before else float("nan")
                assert close(layer["changed"], [expected])
                before[name] = decisions


@pytest.mark.parametrize(
    ("moe", "trainer", "changes"),
    [
        ({}, {}, {}),
        ({}, {"accumulate_grad_batches": 2, "val_check_interval": 8}, {}),
        ({}, {}, {"model.recompute": "blocks"}),
        ({"router": {"use": "noisy_topk", "top_k": 2}, "dispatcher": {"use": "capacity", "factor": 0.6}}, {}, {}),
    ],
    ids=["plain", "accumulated", "recomputed", "dropping"],
)
def test_every_statistic_of_a_run_equals_a_recount(
    tiny: Make, tmp_path: Path, moe: Any, trainer: Any, changes: dict[str, Any]
) -> None:
    if "router" in moe:
        moe = {**moe, "balancers": {"load": {"use": "load_balance", "weight": 0.01}}}
    saved = SaveDecisions()
    overrides = [f"{name}={value}" for name, value in changes.items()]
    run = moekit.train(tiny(moe=moe, trainer=trainer), overrides, out=tmp_path, callbacks=[saved], quiet=True)
    check_run(run, saved, [2, 4, 6, 8], [4, 8], moe["dispatcher"]["factor"] if "dispatcher" in moe else None)
    layers = run.routing["layers"]
    assert (layers["dropped_pairs"].sum() > 0) == ("router" in moe)
    assert np.nanmax(layers["changed"]) > 0
    bias = rows(run.routing["experts"], part="val", step=8, layer="blocks.2.ffn")["bias"]
    held = run.module.balance.layers["blocks.2.ffn"].selection_bias()
    assert np.isnan(bias).all() if held is None else bias.tolist() == held.tolist()


class Stop(Callback):
    """Ends a run as a kill would, without a last validation."""

    def on_train_batch_end(self, trainer: Any, *given: Any) -> None:
        if trainer.global_step == 7:
            raise RuntimeError("killed")


def test_a_resumed_run_has_the_rows_of_an_undisturbed_one(tiny: Make, tmp_path: Path, run: Run) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        moekit.train(tiny(), out=tmp_path, callbacks=[Stop()], quiet=True)
    (folder,) = (tmp_path / "tiny").iterdir()
    resumed = moekit.train(resume=folder, quiet=True)
    for table, columns in run.routing.items():
        for name, column in columns.items():
            other = resumed.routing[table][name]
            if name == "changed":  # the first validation after a start has none before it
                other, column = other[~np.isnan(other)], column[~np.isnan(other)]
            np.testing.assert_array_equal(other, column)


def test_a_skipped_step_has_no_rows_and_a_part_can_be_switched_off(tiny: Make, tmp_path: Path) -> None:
    quiet = {"routing": {"use": "routing", "train": False}}
    run = moekit.train(tiny(trainer={"callbacks": quiet}), out=tmp_path, quiet=True)
    assert set(run.routing["layers"]["part"]) == {"val"}

    class Poison(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if trainer.global_step + 1 == 4:
                next(iter(module.model.parameters())).grad.fill_(torch.nan)

    run = moekit.train(tiny(non_finite="skip"), out=tmp_path, callbacks=[Poison()], quiet=True)
    assert run.metrics["step"]
    part, step = run.routing["layers"]["part"], run.routing["layers"]["step"]
    assert sorted(set(step[part == "train"].tolist())) == [2, 6, 8]


def test_a_recorder_that_is_given_is_the_only_one(tiny: Make, tmp_path: Path) -> None:
    run = moekit.train(tiny(), out=tmp_path, callbacks=[RoutingRecorder(train=False)], quiet=True)
    assert sorted(set(run.routing["layers"]["step"].tolist())) == [4, 8]
    assert len(run.routing["layers"]["step"]) == 2 * 2  # layers, validations


def test_the_callback_refuses_another_module() -> None:
    import lightning as L

    with pytest.raises(MoekitError, match="records a LitMoE, not LightningModule"):
        RoutingRecorder().setup(L.Trainer(barebones=True), L.LightningModule(), "fit")


def routing_of(kind: str) -> Any:
    """A routing of 12 tokens to 5 experts, the last three of them padding; ties among scores and gates."""
    logits_TE = torch.randn(12, 5).round(decimals=1)
    valid_T = torch.arange(12) < 9
    common = {"logits_TE": logits_TE, "scores_TE": logits_TE.softmax(-1), "valid_T": valid_T}
    if kind == "expert_choice":
        token_EC = torch.stack([torch.randperm(12)[:4] for _ in range(5)])
        return ExpertChoice(**common, token_EC=token_EC, gate_EC=torch.rand(5, 4))
    expert_TK = torch.stack([torch.randperm(5)[:3] for _ in range(12)])
    gate_TK = torch.rand(12, 3).round(decimals=1)
    sent_TK = torch.rand(12, 3) < 0.6 if kind == "unsent" else None
    return TokenChoice(**common, expert_TK=expert_TK, gate_TK=gate_TK, sent_TK=sent_TK)


class OneLayer:
    """What ``decisions_of`` reads of a module."""

    def __init__(self, bias_E: torch.Tensor | None) -> None:
        self.data = None
        self.bias_E = bias_E

    @property
    def balance(self) -> Any:
        return self

    @property
    def layers(self) -> dict[str, Any]:
        return {"moe": self}

    def selection_bias(self) -> torch.Tensor | None:
        return self.bias_E


@pytest.mark.parametrize("kind", ["all", "unsent", "expert_choice"])
def test_padding_unsent_choices_and_experts_that_choose_are_counted_exactly(kind: str) -> None:
    module: Any = OneLayer(torch.randn(5))
    passes = Passes(module.layers, VALIDATION, domains=2)
    again = Passes(module.layers, VALIDATION, domains=2)
    all_decisions, all_after = [], []
    batches = [Batch(torch.zeros(3, 4), torch.zeros(3, 4), domain=torch.tensor([0, 1, 1])) for _ in range(3)]
    for batch in batches:
        routing = routing_of(kind)
        report = LayerReport(routing=routing, dropped=torch.tensor(0))
        passes.add(ModelOutput(y=torch.zeros(()), reports={"moe": report}), batch)
        all_decisions += decisions_of(routing, batch, module, "moe")
    expected = recount(all_decisions)
    again.before = passes.first
    found = passes.take(7, ["moe"])
    named = {t: dict(columns) for t, columns in found.items()}
    for columns in named.values():
        columns["part"] = np.where(columns["part"] == 1, "val", "train")
    assert set(named) == {"experts", "layers", "domains", "pairs"}
    experts = named["experts"]
    assert experts["load"].tolist() == expected.load and close(experts["importance"], expected.importance)
    layer = {name: column[0] for name, column in named["layers"].items()}
    counted = {name: layer[name] for name in COUNTS}
    assert counted == {name: expected.counts[name] for name in counted}
    assert all(close(layer[name], value) for name, value in expected.means.items())
    for batch in batches:
        routing = routing_of(kind)
        report = LayerReport(routing=routing, dropped=torch.tensor(0))
        again.add(ModelOutput(y=torch.zeros(()), reports={"moe": report}), batch)
        all_after += decisions_of(routing, batch, module, "moe")
    share = again.take(8, ["moe"])["layers"]["changed"]
    assert close(share, [changed(all_decisions, all_after)]) and 0 < share[0] < 1


def test_pairs_of_experts_are_counted_exactly_under_autocast() -> None:
    """bf16 has no 257."""
    sent_TE = torch.tensor([[True, True, False]] * 257 + [[True, False, True]] * 2)
    with torch.autocast("cpu", torch.bfloat16):
        found_EE = pairs_EE(Sent(sent_TE=sent_TE, gate_TE=sent_TE.float()))
    assert found_EE.tolist() == [[259, 257, 2], [257, 257, 0], [2, 0, 2]]


def test_every_expert_number_fits_its_column() -> None:
    """Shazeer et al. have 65,536 experts."""
    numbers = {name: np.array([65_535]) for name in ("expert", "first", "second")}
    assert all(column[0] == 65_535 for column in columns_of({}, numbers, 1).values())


def test_observers_see_every_pass_once_also_under_recomputation_and_not_the_search_for_a_nan(
    tiny: Make, tmp_path: Path
) -> None:
    """Recomputation runs a block twice, and the search for a NaN runs the model again."""
    seen: list[int] = []

    class Observe(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            module.observers.append(lambda output, batch: seen.append(trainer.global_step))

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if trainer.global_step == 2:
                next(iter(module.model.parameters())).grad.fill_(torch.nan)

    options = {"max_steps": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0, "val_check_interval": 8}
    tree = tiny(non_finite="skip", trainer=options)
    moekit.train(tree, ["model.recompute=blocks"], out=tmp_path, callbacks=[Observe()], quiet=True)
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]


def test_two_processes_record_what_one_does(tiny: Make, tmp_path: Path) -> None:
    """The learning rate is so small that no weight changes: else sums in another order would change decisions."""
    found = []
    for ranks, accumulate in ((1, 2), (2, 1)):
        trainer = {"max_steps": 4, "devices": ranks, "accumulate_grad_batches": accumulate, "log_every_n_steps": 1}
        tree = tiny(trainer=trainer | {"val_check_interval": 2 * accumulate})
        tree["optimizer"]["lr"], tree["data"]["batch"] = 1e-30, 5
        (tmp_path / f"{ranks}.json").write_text(json.dumps(tree))
        out = run_forked(SCRIPT, ranks, str(tmp_path / f"{ranks}.json"), str(tmp_path / str(ranks)))
        (folder,) = (tmp_path / str(ranks) / "tiny").iterdir()
        found.append(moekit.open(folder).routing)
        assert found[-1], out
    assert set(found[0]) == set(found[1]) == {"experts", "layers", "domains", "classes", "pairs"}
    for table, columns in found[0].items():
        for name, column in columns.items():
            other = found[1][table][name]
            if column.dtype.kind == "f":
                np.testing.assert_allclose(other, column, rtol=1e-6)
            else:
                np.testing.assert_array_equal(other, column)
    layers = found[0]["layers"]
    assert layers["tokens"][layers["part"] == "train"].tolist() == [2 * 5 * 16] * 8
