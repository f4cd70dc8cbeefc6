"""A run on translation pairs: scores in the output, the summary and the comparison, then ``moekit generate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moekit.cli import main

WORDS = ["save", "open", "close", "print", "find", "undo", "cut", "copy", "paste", "help"]
SMALL = (
    "data={use: translations, path: pairs.tsv, languages: [loud], tokenizer: bytes, vocab: 258, batch_tokens: 128, "
    "validation_pairs: 4}",
    "model.dim=16",
    "model.attention={use: relative, heads: 2, head_dim: 8}",
    "model.cross={heads: 2, head_dim: 8}",
    "model.ffn.hidden=16",
    "model.moe.experts={use: ffn, count: 4, hidden: 16}",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
)


def test_a_translation_run_scores_the_mixture_and_its_dense_baseline_and_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{word} %s {n}\t{word.upper()} %s {n}\tloud" for word in WORDS for n in range(3)]
    Path("pairs.tsv").write_text("\n".join(rows))
    assert main(["train", "gshard", *SMALL]) == 0
    output = capsys.readouterr().out
    assert "dense: evaluating the trained model" in output and "BLEU" in output and "placeholders kept" in output
    assert "generate runs/gshard" in output and '"<loud> Save changes"' in output
    (run,) = Path("runs/gshard").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    names = {"bleu", "chrf", "scored_pairs", "placeholders_kept", "pairs_with_placeholders"}
    for scores in (summary["scores"], summary["comparison"]["dense_scores"]):
        assert set(scores) == names and scores["scored_pairs"] == scores["pairs_with_placeholders"] == 4
    table = (run / "translations.tsv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 5 and all(line.startswith("loud\t") for line in table[1:])
    assert main(["generate", "gshard", "<loud> save", "--tokens", "3"]) == 0
    assert main(["generate", "gshard", "save", "--tokens", "3"]) == 2
    assert "names no language to translate into" in capsys.readouterr().err
