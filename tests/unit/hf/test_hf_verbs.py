"""The verbs that plugins for Hugging Face add: import, inspect, and export --format hf."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_folders import byte_level_tokenizer, mixtral_tensors, write_folder

from moekit.cli import main

NUMBERS = f"{sum(t.numel() for t in mixtral_tensors().values()):,}"


def test_a_folder_goes_in_and_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_folder(Path("theirs"), mixtral_tensors() | {})
    (path / "tokenizer.json").write_text(byte_level_tokenizer())
    assert main(["inspect", "theirs"]) == 0
    said = capsys.readouterr().out
    for words in ("mixtral", f"{NUMBERS} in total", "35 of theirs, 21 of ours", "each token takes its k best experts"):
        assert words in said
    assert main(["import", "theirs", "--to", "imported"]) == 0
    assert 'moekit generate imported "The "' in capsys.readouterr().out
    assert main(["generate", "imported", "the cat", "--tokens", "3"]) == 0
    capsys.readouterr()
    assert main(["export", "imported", "out", "--format", "hf", "dtype=bfloat16"]) == 0
    assert "mixtral: 35 tensors in 1 file, with tokenizer.json" in capsys.readouterr().out
    assert main(["export", "imported", "weights.safetensors"]) == 0
    assert Path("weights.safetensors").is_file() and f"{NUMBERS} numbers" in capsys.readouterr().out


def test_a_run_has_a_place_of_its_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("theirs"))
    assert main(["import", "theirs"]) == 0
    (run,) = Path("runs/theirs").iterdir()
    assert (run / "spec.yaml").is_file()
    (Path("theirs") / "config.json").write_text("{}")
    assert main(["import", "theirs"]) == 2
    assert [path.name for path in Path("runs/theirs").iterdir()] == [run.name]  # nothing is left of the failed one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "run", "--format", "hf"], "--format needs a place to write to"),
        (["export", "run", "out", "dtype=float16"], "'dtype=float16' is an option of a format"),
        (["export", "run", "out", "--format", "hff"], "did you mean 'hf'?"),
        (["export", "run", "out", "--format", "hf", "dtype=int8"], "dtype"),
        (["import", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_reported(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists() and not Path("runs").exists()
