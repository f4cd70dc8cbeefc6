"""Command lines with mistakes for the verbs of plugins, also over damaged folders of Hugging Face.

As in ``test_command_lines.py``; the slow version takes 500.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from command_lines import (
    COUNT,
    ODD_OVERRIDES,
    ODD_RECIPES,
    ODD_RUNS,
    ON,
    OVERRIDES,
    RECIPES,
    RUN_PATHS,
    WHERE,
    Mistakes,
    check,
    prepared,
)
from tiny_folders import write_folder
from tiny_runs import OFTEN, only_run

from moekit.cli import main

FIELDS: dict[str, dict[str, object]] = {
    "size-huge": {"hidden_size": 1e30},
    "size-text": {"hidden_size": "x"},
    "size-list": {"hidden_size": [16]},
    "size-0": {"hidden_size": 0},
    "size-negative": {"num_local_experts": -3},
    "size-null": {"num_hidden_layers": None},
    "size-other": {"intermediate_size": 13},
    "layers-huge": {"num_hidden_layers": 10**9},
    "experts-huge": {"num_local_experts": 10**12},
    "top-k": {"num_experts_per_tok": 99},
    "heads": {"num_attention_heads": 3},
    "eps": {"rms_norm_eps": "x"},
    "eps-nan": {"rms_norm_eps": float("nan")},
    "rope": {"rope_scaling": {"rope_type": "klingon"}},
    "rope-list": {"rope_scaling": [1]},
    "rope-text": {"rope_theta": "x"},
    "type": {"model_type": "klingon", "architectures": ["KlingonForCausalLM"]},
    "type-number": {"model_type": 3},
    "type-null": {"model_type": None, "architectures": None},
    "dtype": {"torch_dtype": "klingon"},
    "eos": {"eos_token_id": "x"},
    "eos-far": {"eos_token_id": 10**9},
    "activation": {"hidden_act": "klingon"},
    "quantized": {"quantization_config": {"quant_method": "fp8"}},
}
FILES: dict[str, tuple[str, bytes]] = {
    "config-empty": ("config.json", b""),
    "config-junk": ("config.json", b'{"a": '),
    "config-list": ("config.json", b"[]"),
    "config-number": ("config.json", b"1e999"),
    "config-deep": ("config.json", b"[" * 100_000),
    "config-binary": ("config.json", bytes(range(256))),
    "config-bom": ("config.json", b"\xef\xbb\xbf{}"),
    "weights-empty": ("model.safetensors", b""),
    "weights-junk": ("model.safetensors", bytes(range(256)) * 9),
    "weights-header-huge": ("model.safetensors", b"\xff" * 64),
    "weights-header-list": ("model.safetensors", (2).to_bytes(8, "little") + b"[]"),
    "weights-none": ("model.safetensors", (2).to_bytes(8, "little") + b"{}"),
    "index-junk": ("model.safetensors.index.json", b"{"),
    "index-list": ("model.safetensors.index.json", b'{"weight_map": []}'),
    "index-outside": ("model.safetensors.index.json", b'{"weight_map": {"lm_head.weight": "../weights"}}'),
    "index-absolute": ("model.safetensors.index.json", b'{"weight_map": {"lm_head.weight": "/dev/zero"}}'),
    "index-number": ("model.safetensors.index.json", b'{"weight_map": {"lm_head.weight": 3}}'),
    "index-missing": ("model.safetensors.index.json", b'{"weight_map": {"lm_head.weight": "gone.safetensors"}}'),
    "tokenizer-junk": ("tokenizer.json", b"{"),
    "tokenizer-list": ("tokenizer.json", b"[]"),
    "tokenizer-binary": ("tokenizer.json", b"\xff\xfe\0"),
    "tokenizer-config-junk": ("tokenizer_config.json", b"{"),
    "generation-junk": ("generation_config.json", b"{"),
}
ODD_FOLDERS = (
    *(f"hf/{name}" for name in (*FIELDS, *FILES)),
    *("hf/no-config", "hf/no-weights", "hf/cut", "hf/fifo-config", "hf/fifo-weights", "hf/folder-config"),
    *("hf/good/config.json", "hf", "", ".", "missing", "owner/name", "é/é", "\udcff", "a" * 300, "/dev/zero", "run"),
)
AXES = (
    *("optimizer.lr=1e-3,x", "optimizer.lr=3..1", "optimizer.lr=..", "optimizer.lr=1..x", "optimizer.lr=,", "=1,2"),
    *(
        "model.klingon=1,2",
        "model.moe.router.top_k=1,99",
        "seed=x,y",
        "a",
        "model.depth=",
        "data.use=x,y",
        "\udcff=1,2",
    ),
    *("seed=0..1e99", "optimizer.lr=nan..1", "optimizer.lr=-1..inf", "model.depth=1,,2", "model=1,2", "schema=1,99"),
)
MIXTURE = "router: {use: topk, top_k: 2, renormalize: true}, experts: {use: glu, count: 2, hidden: 16}"
MOE = f"model.moe={{at: {{first: 0}}, {MIXTURE}}}"


def argument_lists(rng: random.Random) -> Iterator[list[str]]:
    """Command lines without end; most have a mistake."""
    verbs = ("import", "import", "inspect", "upcycle", "prune", "report", "compare", "eval", "sweep", "watch", "new")
    while True:
        words = Mistakes(rng)
        choose, options = words.choose, words.options
        verb = rng.choice((*verbs, "export", "check", "reproduce", "rest"))
        recipe, run = choose(RECIPES, ODD_RECIPES), choose((*RUN_PATHS, "imported"), ODD_RUNS)
        data = [choose(("data.seq=6", "data.batch=2"), ODD_OVERRIDES) for _ in range(rng.choice([0, 0, 1, 2]))]
        new_run = (("out/made",), ("run", "tiny.yaml", "/proc/x", "", "a" * 300, "no/such/folder", "fifo.yaml"))
        page = (("out.html",), ("folder.yaml", "/dev/full", "/proc/x", "no/such/folder/x", "", "fifo.yaml"))
        if verb == "import":
            yield ["import", choose(("hf/good",), ODD_FOLDERS), *options(to=new_run)]
        elif verb == "inspect":
            yield ["inspect", choose(("hf/good",), ODD_FOLDERS)]
        elif verb == "upcycle":
            more = choose((MOE,), ("model.moe=null", "model.moe=x", "model.dim=8", MOE.replace("16", "15"), "", "x=1"))
            number = (("0", "0.5"), ("-1", "x", "nan", "2", ""))
            yield [
                *("upcycle", choose(("dense",), ("run", *ODD_RUNS)), "--to", choose(*new_run), more),
                *options(shards=(("1", "2"), ("0", "3", "x")), redraw=number, noise=number, seed=COUNT, root=WHERE),
            ]
        elif verb == "prune":
            keep = (("2", "4"), ("0", "1", "8", "99", "-1", "x", ""))
            yield ["prune", run, *data, *options(keep=keep, to=new_run, root=WHERE)]
        elif verb == "report":
            text = (("text/0.txt",), ("fifo.yaml", "binary.yaml", "/dev/zero", "missing", "text", "", "empty.yaml"))
            more = options(to=page, text=text, sequences=COUNT, no_model=ON, pictures=WHERE, json=ON, out=WHERE)
            yield ["report", run, *data, *more]
        elif verb == "compare":
            others = [choose((*RUN_PATHS[:1], "dense"), ODD_RUNS) for _ in range(rng.choice([0, 1, 2]))]
            yield ["compare", choose(RUN_PATHS[:1], ODD_RUNS), *others, *options(to=page, json=ON, out=WHERE)]
        elif verb == "eval":
            yield ["eval", run, *data, *options(json=ON, out=WHERE)]
        elif verb == "sweep":  # never without a mistake: each run is a process of its own
            counts = (COUNT[0], ("0", "-1", "x", "", "1.5"))
            more = options(seeds=counts, random=counts, tpe=counts, jobs=counts, threads=counts, prune=ON, out=WHERE)
            yield ["sweep", recipe, "trainer.max_steps=1", rng.choice(AXES), *more]
        elif verb == "watch":
            every = (("1",), ("0", "-1", "x", "nan", "inf", ""))
            yield ["watch", choose(RUN_PATHS[:1], ODD_RUNS), "--once", *options(every=every, out=WHERE)]
        elif verb == "new":
            kind = (("router", "verb"), ("klingon", "", "é", "../x", "a" * 300))
            name = (
                ("mine",),
                ("", "Ü", "a b", "../x", "class", "topk", "a" * 300, "1x", "a-b", "torch", "\udcff", "nul"),
            )
            yield ["new", choose(*kind), choose(*name), *options(to=new_run)]
        elif verb == "export":
            key = choose(("dtype=bfloat16", "dtype=float32"), ("dtype=x", "klingon=1", "=", "x", "dtype="))
            target = choose(("out/exported",), ("tiny.yaml", "run", "/proc/x", "a" * 300, ""))
            which = choose(("imported",), (run, "dense"))
            yield ["export", which, target, *rng.choice([[], [key]]), "--format", choose(("hf",), ("klingon", ""))]
        elif verb == "check":
            name = (("router/topk", "sign_bias"), ("", "/", "klingon", "router/klingon", "x/y/z", "é", "topk/topk"))
            key = (("top_k=1",), ("top_k=x", "top_k=99", "klingon=1", "=", "top_k=", "top_k={", "\udcff=1"))
            only = (("check_padding",), ("klingon", "", "é"))
            more = [choose(*key)] if rng.random() < 0.3 else []
            yield ["check", choose(*name), *more, "--only", choose(*only), *options(json=ON)]
        elif verb == "reproduce":  # never without a mistake: a paper takes minutes
            odd = rng.choice(("klingon", "", "é", "switch=1", "steps=x", "steps=-1", "steps=0", "a" * 300, "\udcff"))
            yield ["reproduce", *rng.choice([[], ["switch"]]), odd, "--quick", *options(seeds=COUNT, threads=COUNT)]
        else:
            line = choose(
                ("moekit tr", "moekit train deepseek_v3 model."), ("", "\udcff", "moekit 'x", "x" * 5000, "é")
            )
            yield rng.choice(
                (
                    ["doctor", *options(processes=COUNT, out=WHERE, json=ON)],
                    ["completion", choose(("words", "bash"), ("klingon", "")), line],
                    ["config", "diff", recipe, choose(RECIPES, ODD_RECIPES), choose(OVERRIDES, ODD_OVERRIDES)],
                    ["config", "schema", *options(klingon=ON)],
                    ["ls", "runs", *options(out=WHERE, json=ON)],
                    ["reproduce", "--list", *options(ledger=WHERE)],
                )
            )


def odd_folders(root: Path) -> None:
    """Folders of the names above."""
    good = write_folder(root / "hf" / "good")
    config = json.loads((good / "config.json").read_text())
    for name, fields in FIELDS.items():
        shutil.copytree(good, root / "hf" / name)
        (root / "hf" / name / "config.json").write_text(json.dumps({**config, **fields}))
    others = ("no-config", "no-weights", "cut", "fifo-config", "fifo-weights", "folder-config")
    for name in (*FILES, *others):
        shutil.copytree(good, root / "hf" / name)
    for name, (file, content) in FILES.items():
        if "index" in name:
            (root / "hf" / name / "model.safetensors").unlink()
        (root / "hf" / name / file).write_bytes(content)
    weights = good / "model.safetensors"
    for name, file in (("no-config", "config"), ("fifo-config", "config"), ("folder-config", "config")):
        (root / "hf" / name / f"{file}.json").unlink()
    for name in ("no-weights", "fifo-weights"):
        (root / "hf" / name / weights.name).unlink()
    (root / "hf" / "cut" / weights.name).write_bytes(weights.read_bytes()[:-100])
    (root / "hf" / "folder-config" / "config.json").mkdir()
    os.mkfifo(root / "hf" / "fifo-config" / "config.json")
    os.mkfifo(root / "hf" / "fifo-weights" / weights.name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepared(tmp_path_factory.mktemp("commands"))
    odd_folders(folder)
    dense = ["train", "tiny.yaml", "model.moe=null", "model.ffn.hidden=16", "trainer.max_steps=2", *OFTEN]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*dense, "--out", "second"]) == 0
        assert main(["import", "hf/good", "--to", "imported"]) == 0
    only_run(folder / "second").rename(folder / "dense")
    return folder


@pytest.mark.parametrize("number", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_a_plugins_command_line_ends_with_a_result_or_a_message(
    root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    ended = check(root, islice(argument_lists(random.Random(number)), number))
    assert ended[0] > number / 10 and ended[2] > number / 4, ended
