"""Odd files, overrides and runs for command lines with mistakes, and what each command line must end with."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

from tiny_runs import OFTEN, only_run, prepare

from moekit.cli import main

VERDICTS = ("check", "doctor")  # verbs that exit with 1 if they find a fault
LIMIT = 120  # s for a command; one that waits for ever would not end at all

RECIPES = ("tiny.yaml",)
ODD_RECIPES = (
    *("missing.yaml", "fifo.yaml", "folder.yaml", "empty.yaml", "list.yaml", "latin.yaml", "junk.yaml", "loop.yaml"),
    *("binary.yaml", "bomb.yaml", "deep.yaml", "newer.yaml", "self.yaml", "/dev/zero", "", ".", "é", "tiny", "switch-"),
    *(
        "tiny.yaml/x",
        "text/0.txt",
        "run/metrics.csv",
        "run/routing/step-00000002.npz",
        "\udcff",
        "a" * 300,
        "nul.yaml",
        "~klingon/x.yaml",
    ),
)
RUN_PATHS = ("run", "run/checkpoints/last", "run/checkpoints/best", "run/checkpoints/step-00000002")
ODD_RUNS = (
    *("run/checkpoints", "run/spec.yaml", "run/checkpoints/step-00000002/manifest.json", "run/checkpoints/step-9"),
    *("tiny.yaml", "empty-run", "no-spec", "no-last", "bad-spec", "cut-spec", "fifo-last", "file-run", "dangling"),
    *("missing", "/dev/zero", "fifo.yaml", "", ".", "..", "text", "é/é", "\udcff", "a" * 300, "old-schema", "no-data"),
)
OVERRIDES = (
    *("model.depth=1", "seed=3", "model.moe.router.top_k=1", "data.batch=2", "optimizer.lr=0.1", "model.moe=null"),
    *("trainer.precision=64-true", "data.seq=6", "name=other", "model.moe.experts.count=4", "optimizer={use: sgd}"),
    *("model.moe.dispatcher={use: capacity, slots: 1}", "compare={lr: 0.01}", "model.moe.router={use: expert_choice}"),
)
ODD_OVERRIDES = (
    *("seed=-1", "seed=x", "seed=9999999999999999999999", "trainer.max_steps=0", "trainer.max_steps=1.5", "=", "a=b"),
    *(
        "model.depth=x",
        "model=null",
        "data={",
        "trainer=[",
        "optimizer.lr=.inf",
        "optimizer.lr=.nan",
        "model.depth=1e30",
    ),
    *("trainer.strategy=ddp_x", "trainer.accelerator=klingon", "trainer.devices=-3", "trainer.precision=17", "x.y.z=1"),
    *(
        "model.moe.router.top_k=99",
        "model.moe.router.top_k=0",
        "model.moe.experts.count=0",
        "data.path=missing",
        "data=1",
    ),
    *(
        "data.path=fifo.yaml",
        "data.path=empty-run",
        "data.path=/dev/zero",
        "data.path=binary.yaml",
        "data.encoding=klingon",
    ),
    *(
        "data.seq=100000",
        "data.batch=0",
        "data.validation=2",
        "data.validation=0",
        "objective=null",
        "objective.use=mse",
    ),
    *("model.use=switch", "model.moe.router.use=klingon", "model.attention.heads=3", "model.attention.head_dim=7"),
    *(
        "schema=99",
        "schema=x",
        "name=a/b",
        "name=..",
        "name=",
        "summary=[1]",
        "requires={base: '>=99'}",
        "stop={below: 1}",
    ),
    *(
        "stop.metric=val/klingon",
        "extends=tiny.yaml",
        "extends=self.yaml",
        "model.dim=${model.dim}",
        "model.dim=${x",
        "a.b",
    ),
    *(
        "model.dim=${oc.env:NO_SUCH}",
        "model.dim=-16",
        "model.moe.at={first: 9}",
        "model.moe.at=x",
        "trainer.max_time=x",
    ),
    *("model.moe.balancers.bias=null", "model.moe.balancers={}", "model.moe.balancers.router={use: sign_bias}", "é=é"),
    *(
        "optimizer.betas=[1]",
        "optimizer.betas=[2, 2]",
        "schedule={use: klingon}",
        "trainer.limit_val_batches=x",
        "\udcff=1",
    ),
    *("trainer.val_check_interval=0.3", "trainer.accumulate_grad_batches=0", "trainer.gradient_clip_val=-1", "start=x"),
    *("trainer.logger=true", "trainer.callbacks=[x]", "trainer.klingon=1", "checkpoints.keep=0", "checkpoints=null"),
    *("start={run: missing}", "start={run: run}", "model.vocab=3", "data.use=vowels", "data.use=translations"),
    *(
        "batch_ramp={from: 2}",
        "non_finite=x",
        "optimizer.use=muon",
        "model.moe.experts={use: glu}",
        "[=1",
        "a..b=1",
        ".=1",
    ),
)


class Mistakes:
    """Chooses words of one command line, with at most ``left`` mistakes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.left = rng, rng.choice([0, 1, 1, 1, 2, 2])

    def choose(self, good: tuple[str, ...], odd: tuple[str, ...]) -> str:
        """One of the good words or, while mistakes are left, of the odd ones."""
        if self.left and self.rng.random() < 0.5:
            self.left -= 1
            return self.rng.choice(odd)
        return self.rng.choice(good)

    def overrides(self) -> list[str]:
        """Up to three overrides."""
        return [self.choose(OVERRIDES, ODD_OVERRIDES) for _ in range(self.rng.choice([0, 1, 1, 2, 3]))]

    def options(self, **named: tuple[tuple[str, ...], tuple[str, ...]]) -> list[str]:
        """Up to three of these options; the value ``on`` is that of a flag."""
        chosen = self.rng.sample(sorted(named), self.rng.randint(0, min(3, len(named))))
        words = []
        for name in chosen:
            value, flag = self.choose(*named[name]), f"--{name.replace('_', '-')}"
            words += [flag] if value == "on" else [flag, value]
        return words


ON = (("on",), ("--klingon", "-x", "on"))
WHERE = (("out",), ("tiny.yaml", "/dev/null", "/proc/x", "", "a" * 300, "fifo.yaml"))
COUNT = (("1", "3"), ("0", "-1", "x", "1e9", "", "nan", "1.5"))


def odd_files(root: Path) -> None:
    """Files of the names above."""
    os.mkfifo(root / "fifo.yaml")
    (root / "folder.yaml").mkdir()
    tiny = (root / "tiny.yaml").read_text()
    deep = "[" * 400
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for name, text in {
        "empty.yaml": "",
        "list.yaml": "- 1\n- 2\n",
        "nul.yaml": tiny.replace("name: tiny", 'name: "a\\0b"'),
        "junk.yaml": "a: [b: {c\n",
        "bomb.yaml": bomb,
        "deep.yaml": f"trainer: {deep}",
        "newer.yaml": tiny.replace("schema: 1", "schema: 99"),
        "self.yaml": f"extends: self.yaml\n{tiny}",
        "file-run": "no folder\n",
    }.items():
        (root / name).write_text(text)
    (root / "latin.yaml").write_bytes(tiny.replace("name: tiny", "name: café").encode("latin-1"))
    (root / "binary.yaml").write_bytes(bytes(range(256)) * 4)
    (root / "loop.yaml").symlink_to("loop.yaml")
    (root / "dangling").symlink_to("nowhere")
    (root / "empty-run").mkdir()
    for name in ("no-spec", "no-last", "bad-spec", "cut-spec", "fifo-last", "old-schema", "no-data"):
        shutil.copytree(root / "run", root / name)
    spec = (root / "run" / "spec.yaml").read_text()
    (root / "no-spec" / "spec.yaml").unlink()
    (root / "no-last" / "checkpoints" / "last").unlink()
    (root / "bad-spec" / "spec.yaml").write_bytes(b"\xff\xfe\0")
    (root / "cut-spec" / "spec.yaml").write_text(spec[: len(spec) // 2])
    (root / "fifo-last" / "checkpoints" / "last").unlink()
    os.mkfifo(root / "fifo-last" / "checkpoints" / "last")
    (root / "old-schema" / "spec.yaml").write_text(spec.replace("schema: 1", "schema: 0"))
    (root / "no-data" / "spec.yaml").write_text(spec.replace("path: text", "path: gone"))


def prepared(folder: Path) -> Path:
    """A folder with ``tiny.yaml``, a run of two steps, and odd files."""
    prepare(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "tiny.yaml", "trainer.max_steps=2", *OFTEN, "--out", "first"]) == 0
    finally:
        os.chdir(before)
    only_run(folder / "first").rename(folder / "run")
    odd_files(folder)
    return folder


@contextmanager
def ends_in_time(seconds: int = LIMIT, error: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Interrupts what hangs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_command(argv: list[str]) -> tuple[int, str, str]:
    """The exit code, and what was printed, to streams like those of a process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors) for errors in ("replace", "backslashreplace"))
    try:
        with ends_in_time(), redirect_stdout(out), redirect_stderr(err):
            code = main(argv)
    except Exception as error:
        raise AssertionError(f"{argv} ended with a traceback") from error
    for stream in (out, err):
        stream.flush()
    said, errors = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return code, said, errors


def check(root: Path, lists: Iterable[list[str]]) -> Counter[int]:
    """Runs command lines in ``root``, the working folder, which they may change; counts their exit codes."""
    ended = Counter[int]()
    whole = root / "whole"
    if not whole.exists():
        shutil.copytree(root / "run", whole)
    for argv in lists:
        code, out, err = run_command(argv)
        right = (0, 1, 2) if argv[0] in VERDICTS else (0, 2)
        assert code in right and "Traceback" not in out + err, (code, argv, out, err)
        assert code != 2 or err.startswith("error: "), (argv, err)
        ended[code] += 1
        for folder in ("runs", "out", "moekit-mine"):
            shutil.rmtree(root / folder, ignore_errors=True)
        shutil.rmtree(root / "run")
        shutil.copytree(whole, root / "run")
    return ended
