"""Scores by domain: the parts sum to the whole, which is the validation that training logged; other corpora too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moekit
from moekit.cli import main
from moekit.errors import MoekitError
from moekit.run import Run
from moekit_report.scoring import score

Make = Callable[..., dict[str, Any]]


def test_the_whole_is_what_validation_logged_and_the_domains_are_its_parts(run: Run) -> None:
    scores, _ = score(run)
    *domains, whole = scores
    for name in ("loss", "bits_per_byte"):
        assert whole.values[name] == pytest.approx(run.outcome["validation"][name], rel=1e-6)
    assert [each.domain for each in domains] == ["<b>high<\N{FRACTION SLASH}b>", "low"]
    assert sum(each.tokens for each in domains) == whole.tokens == 12 * 16
    assert sum(each.sequences for each in domains) == whole.sequences == 12
    weighted = sum(each.values["loss"] * each.tokens for each in domains) / whole.tokens
    assert weighted == pytest.approx(whole.values["loss"], rel=1e-6)
    assert abs(domains[0].values["bits_per_byte"] - domains[1].values["bits_per_byte"]) > 1e-3


def test_a_domain_scores_as_a_model_that_reads_it_alone(run: Run) -> None:
    scores, _ = score(run)
    module = run.module
    assert module.data is not None
    total = count = 0.0
    for batch in module.data.validation_batches():
        assert batch.domain is not None
        rows = batch.domain == 1
        logits = module.model(batch.inputs[rows]).y.detach()
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets[rows].flatten(), reduction="sum")
        )
        count += int(rows.sum()) * 16
    assert scores[1].values["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_loss_over_mixtures_is_scored_for_the_whole_alone(tiny: Make, tmp_path: Path, capsys: Any) -> None:
    """A domain's part of the output says nothing about routing: no number is better than 0."""
    tree = tiny(objective={"use": "causal_lm", "pooled_balance": 0.01}, trainer={"max_steps": 2})
    run = moekit.train(tree, out=tmp_path / "runs", quiet=True)
    *domains, whole = score(run)[0]
    assert whole.values["pooled_balance"] > 0
    assert [sorted(each.values) for each in domains] == [["bits_per_byte", "loss"]] * 2
    assert main(["eval", str(run.path)]) == 0
    assert "balance loss" in capsys.readouterr().out


def test_another_corpus_is_scored_with_the_vocabulary_of_the_run(tiny: Make, tmp_path: Path, capsys: Any) -> None:
    tree = tiny(trainer={"max_steps": 2, "val_check_interval": 2})
    tree["data"]["tokenizer"] = {"use": "bpe", "vocab": 264}
    tree["model"]["vocab"] = 264
    run = moekit.train(tree, out=tmp_path / "runs", quiet=True)
    for domain in ("x", "y", "z"):
        (tmp_path / "mine" / domain).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "mine" / domain / f"{i}.txt").write_text(f"{domain} {i} other words altogether " * 40)
    assert main(["eval", str(run.path), f"data.path={tmp_path / 'mine'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["domain"] for each in found] == ["x", "y", "z", "all"]
    assert all(each["values"]["bits_per_byte"] > 0 for each in found)
    other = ["data.use=text_files", f"data.path={tmp_path / 'mine'}", "data.seq=16"]
    assert main(["eval", str(run.path), *other, "--json"]) == 0  # another kind of data, whose default is bytes
    assert [each["domain"] for each in json.loads(capsys.readouterr().out)] == ["x", "y", "z", "all"]
    assert main(["eval", str(run.path)]) == 0
    assert "bits per byte" in capsys.readouterr().out


def test_an_override_that_would_change_the_model_is_refused(run: Run) -> None:
    with pytest.raises(MoekitError, match=r"'model\.depth=4' changes more than the data"):
        score(run, ["model.depth=4"])
