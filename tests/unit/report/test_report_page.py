"""The page of a report: it loads nothing, escapes what texts contain, and stays small however long the run was."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeing import long_record
from tiny_folders import byte_level_tokenizer, write_folder

from moekit import open as open_run
from moekit.cli import main
from moekit.errors import MoekitError
from moekit.run import Run
from moekit_report.contents import contents
from moekit_report.packing import LOAD_SCALE
from moekit_report.page import HERE, html_of

Make = Callable[..., dict[str, Any]]
VENDORED = {
    "d3.min.js": ("v7.9.2", "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1"),
    "plot.umd.min.js": ("v0.6.17", "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb"),
}


class Elements(HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.texts.append((self.found[-1][0], data))


@pytest.fixture(scope="module")
def shown(run: Run) -> dict[str, Any]:
    return contents(run)


@pytest.fixture(scope="module")
def page(shown: dict[str, Any]) -> str:
    return html_of(shown)


def test_the_data_is_what_was_recorded_and_examined(run: Run, shown: dict[str, Any]) -> None:
    assert list(shown["layers"]) == ["blocks.1.ffn", "blocks.2.ffn"]
    layer = shown["layers"]["blocks.2.ffn"]
    frames = np.frombuffer(base64.b64decode(layer["val"]["load"]), np.uint8).reshape(2, 4) / LOAD_SCALE
    table = run.routing["experts"]
    at = (table["part"] == "val") & (table["layer"] == "blocks.2.ffn") & (table["step"] == 8)
    share = table["load"][at] * 4 / table["load"][at].sum()
    assert frames[-1] == pytest.approx(share, abs=0.5 / LOAD_SCALE + 1e-9)
    bias = np.frombuffer(base64.b64decode(layer["train"]["bias"]), "<f4").reshape(-1, 4)
    held = run.module.balance.layers["blocks.2.ffn"].selection_bias()
    assert held is not None and bias[-1].tolist() == held.tolist()
    assert [passage["domain"] for passage in shown["passages"]] == shown["domains"]["names"]
    for passage in shown["passages"]:
        assert len(passage["tokens"]) == len(passage["first"]["blocks.1.ffn"]) == 16
    for curve in shown["curves"]:
        key = "tokens_per_second" if curve["part"] == "speed" else f"{curve['part']}/bits_per_byte"
        logged = [value for value in run.metrics[key] if value is not None]
        assert curve["y"] == pytest.approx(logged, rel=1e-5) and len(curve["step"]) == len(logged)
    assert shown["notes"] == [] and json.dumps(shown, allow_nan=False)


def test_the_page_loads_nothing_and_its_policy_says_so(page: str) -> None:
    elements = Elements(page).found
    (policy,) = [a["content"] for tag, a in elements if tag == "meta" and a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert [a for tag, a in elements if a.get("src") or tag in ("iframe", "object", "embed", "base", "form")] == []
    assert [a["href"] for tag, a in elements if "href" in a] == ["data:,", "#findings"]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert len(scripts) == 3 and re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "unsafe-eval" not in policy and "'unsafe-inline'" not in policy.partition("style-src")[0]


def test_scripts_in_texts_names_and_data_stay_text(shown: dict[str, Any]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;@@data@@"
    hostile = json.loads(json.dumps(shown).replace("blocks.1.ffn", "evil").replace("evil", json.dumps(evil)[1:-1]))
    hostile |= {"name": evil, "summary": evil, "notes": [evil], "facts": [(evil, evil)]}
    hostile["findings"] = [{"kind": "x", "level": "note", "text": evil, "key": evil}]
    page = html_of(hostile)
    elements = Elements(page)
    assert len([tag for tag, _ in elements.found if tag == "script"]) == 4  # the data, the library, ours
    assert [tag for tag, a in elements.found if tag == "img" or any(name.startswith("on") for name in a)] == []
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert json.loads(data) == json.loads(json.dumps(hostile))
    assert "<" not in data
    assert evil in "".join(text for _, text in elements.texts)


def test_the_run_of_this_test_has_scripts_in_its_texts(shown: dict[str, Any], page: str) -> None:
    assert any("<script>" in "".join(passage["tokens"]) for passage in shown["passages"])
    assert "<b>" not in page.partition("<style>")[0] + page.partition("</style>")[2].partition("<script>")[0]


def test_the_library_is_vendored_by_version_with_its_licence(page: str) -> None:
    for name, (version, digest) in VENDORED.items():
        raw = (HERE / "vendor" / name).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == digest
        assert version.encode() in raw[:80] and version[1:] in page
        assert (
            "ISC" in (HERE / "vendor" / f"{name.partition('.')[0]}.LICENSE").read_text()
            or "Permission to use" in (HERE / "vendor" / f"{name.partition('.')[0]}.LICENSE").read_text()
        )


@pytest.mark.parametrize(
    ("rows", "every", "limit"), [(1000, 1, 5e6), pytest.param(4000, 25, 10e6, marks=pytest.mark.slow)]
)
def test_the_page_of_a_long_run_is_small_and_says_that_it_is_thinned(
    run: Run, tmp_path: Path, rows: int, every: int, limit: float
) -> None:
    """12 layers of 64 experts; 1,000 steps, and 100,000."""
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "spec.yaml").write_text((run.path / "spec.yaml").read_text())
    long_record(copy / "routing", rows=rows, every=every, layers=12, experts=64)
    shown = contents(open_run(copy), model=False)
    assert len(html_of(shown).encode()) < limit
    assert f"they show every {rows // 100}th of {rows:,} recorded steps" in shown["notes"][0]
    frames = shown["layers"]["blocks.11.ffn"]["train"]["frames"]
    assert (frames[0], frames[-1], len(frames)) == (every, rows * every, 100)


def test_a_run_without_checkpoint_or_record_has_a_page_that_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text((run.path / "spec.yaml").read_text())
    shown = contents(open_run(tmp_path))
    assert [note.partition(":")[0] for note in shown["notes"]] == [
        "The trained model was not examined",
        "Nothing was trained here, so nothing was recorded",
    ]
    assert shown["layers"] == shown["domains"] == {} and shown["findings"] == shown["curves"] == []
    assert "Nothing was found." in html_of(shown)


def test_the_verb_writes_the_page_and_prints_the_findings(run: Run, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "page.html"
    assert main(["report", str(run.path), "--to", str(path), "--sequences", "8"]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {path}" in printed and path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", str(run.path), "--json", "--no-model"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"] == []
    assert not (run.path / "report.html").exists()


def test_a_reader_examines_the_model_with_texts_of_their_own(run: Run, tmp_path: Path) -> None:
    for name, text in (("one", "abc " * 60), ("two", "\N{CJK UNIFIED IDEOGRAPH-6C34} " * 60)):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    shown = contents(run, text=[tmp_path / "one.txt", tmp_path / "two.txt"])
    assert shown["domains"]["names"] == ["one", "two"]
    assert "\N{CJK UNIFIED IDEOGRAPH-6C34}" in shown["passages"][1]["tokens"]
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(MoekitError, match=r"short\.txt has 1 tokens; a window needs 16"):
        contents(run, text=[tmp_path / "short.txt"])
    with pytest.raises(MoekitError, match=r"cannot read .*gone\.txt"):
        contents(run, text=[tmp_path / "gone.txt"])


def write_domains(root: Path, *domains: str) -> Path:
    for domain in domains:
        (root / domain).mkdir(parents=True)
        for i in range(8):
            (root / domain / f"{i}.txt").write_text(f"{domain} {i} words of it " * 60)
    return root


def test_a_run_is_examined_with_another_corpus(run: Run, tmp_path: Path, capsys: Any) -> None:
    mine = write_domains(tmp_path / "mine", "x", "y", "z")
    assert main(["report", str(run.path), f"data.path={mine}", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["domains"]["names"] == ["x", "y", "z"] and shown["layers"]["blocks.1.ffn"]["train"]
    assert main(["report", str(run.path), "model.depth=4"]) != 0
    assert "'model.depth=4' changes more than the data" in capsys.readouterr().err


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_an_imported_model_is_examined_and_scored_with_the_readers_text(
    tmp_path: Path, capsys: Any, has_tokenizer: bool
) -> None:
    folder, mine = write_folder(tmp_path / "hub"), write_domains(tmp_path / "mine", "x", "y")
    if has_tokenizer:
        pytest.importorskip("tokenizers")
        (folder / "tokenizer.json").write_text(byte_level_tokenizer())
    imported = tmp_path / "imported"
    assert main(["import", str(folder), "--to", str(imported)]) == 0
    other = ["data.use=text_files", f"data.path={mine}", "data.seq=16", "data.batch=4"]
    capsys.readouterr()
    assert main(["eval", str(imported), *other, "--json"]) == 0
    assert [each["domain"] for each in json.loads(capsys.readouterr().out)] == ["x", "y", "all"]
    assert main(["report", str(imported), *other, "--to", str(tmp_path / "report.html")]) == 0
    assert "Nothing was trained here" in capsys.readouterr().out
    assert "typical" in (tmp_path / "report.html").read_text()
    shown = contents(open_run(imported), data=other)
    assert shown["domains"]["names"] == ["x", "y"] and len(shown["layers"]) == 2
    assert "word" in "".join(shown["passages"][0]["tokens"]) and any(map(len, shown["typical"]["blocks.0.ffn"]))


def test_arguments_that_exclude_each_other_are_refused(run: Run, capsys: Any) -> None:
    assert main(["report", str(run.path), "--no-model", "--text", "x"]) != 0
    assert "--text examines the model, which --no-model forbids" in capsys.readouterr().err
    assert main(["report", str(run.path), "--no-model", "data.path=x"]) != 0
    assert "data.path=x examines the model, which --no-model forbids" in capsys.readouterr().err
    assert main(["report", str(run.path), "--text", "x", "--", "data.path=x"]) != 0
    assert "--text and data.path=x exclude each other" in capsys.readouterr().err
    assert main(["report", str(run.path), "--sequences", "0"]) != 0
    assert "--sequences 0: expected 1 or more" in capsys.readouterr().err
