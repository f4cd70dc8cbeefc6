"""The run folder: ``runs/<name>/<time>/`` with the spec, metrics, checkpoints and pictures of one run."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from moekit.checkpoints.files import steps_in, target_of
from moekit.checkpoints.reading import is_checkpoint
from moekit.errors import CheckpointError, MoekitError
from moekit.registry import current

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies. Nothing is created before ``create``.

    Args:
        path: the folder.
        chosen: the checkpoint that was asked for; None for the last.
    """

    path: Path
    chosen: Path | None = None

    @classmethod
    def new(cls, root: Path, name: str) -> RunFolder:
        """A folder that does not exist yet, named by the time."""
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        path, again = root / name / stamp, 1
        while path.exists():
            again += 1
            path = root / name / f"{stamp}-{again}"
        return cls(path)

    @classmethod
    def find(cls, run: str, root: Path = RUNS) -> RunFolder:
        """The folder that ``run`` means: a run folder, a checkpoint in one, or a name: its latest with a checkpoint.

        Raises:
            CheckpointError: nothing of that name, or another file of a run.
        """
        path = Path(run)
        if (path / "spec.yaml").is_file():
            return cls(path)
        if is_checkpoint(path) or path.is_file():
            inside = [parent for parent in path.parents if (parent / "spec.yaml").is_file()]
            if inside and not is_checkpoint(path) and path.name != "spec.yaml":
                raise _no_checkpoint(path, cls(inside[0]))
            if inside:
                return cls(inside[0], path if is_checkpoint(path) else None)
        for folder in (root / run, path):
            runs = [spec.parent for spec in folder.glob("*/spec.yaml") if (spec.parent / "checkpoints").is_dir()]
            if runs:
                begun = [
                    run for run in runs if cls(run).last is not None
                ] or runs  # one stopped too early is passed over
                return cls(max(begun, key=lambda p: ((p / "spec.yaml").stat().st_mtime_ns, p.name)))
        known = sorted(p.parent.parent.relative_to(root).as_posix() for p in root.glob("**/*/spec.yaml"))
        recipes = {component.name: component.trains for component in current().components("recipe")}
        make = f"\n  train one first: moekit train {run}" if recipes.get(run) else ""
        raise CheckpointError(
            f"no run at '{run}': neither a run folder, nor a checkpoint in one, nor the name of a run below {root}/\n"
            f"  runs there: {', '.join(dict.fromkeys(known)) or 'none'}{make}"
        )

    def create(self) -> None:
        """Makes the folder and the one for checkpoints."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """How commands may call it: the path."""
        return self.path.as_posix()

    @property
    def spec(self) -> Path:
        """The fully resolved recipe."""
        return self.path / "spec.yaml"

    @property
    def metrics(self) -> Path:
        """One row a logged step, training and validation in one file."""
        return self.path / "metrics.csv"

    @property
    def loads(self) -> Path:
        """Load per step, layer and expert."""
        return self.path / "load.npz"

    @property
    def summary(self) -> Path:
        """What the closing lines say, as JSON."""
        return self.path / "summary.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """A directory for each checkpoint that is kept, by step; ``last`` and ``best`` name two of them."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path | None:
        """The newest checkpoint; None before there is one."""
        return target_of(self.checkpoints, "last")

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss; None before there is one."""
        return target_of(self.checkpoints, "best")

    def checkpoint(self) -> Path:
        """The checkpoint to read or to go on from: the chosen one, or the last.

        Raises:
            CheckpointError: there is none.
        """
        path = self.last if self.chosen is None else target_of(self.chosen.parent, self.chosen.name) or self.chosen
        if path is None:
            others = "".join(f"\n    {other}" for other in steps_in(self.checkpoints).values())
            anew = f"a run writes its first after its first validation; begin anew: moekit train {self.spec}"
            why = f"'last' names none; there are:{others}" if others else f"{anew}{self._old()}"
            raise CheckpointError(f"no checkpoint in {self.checkpoints}\n  {why}")
        return path

    def _old(self) -> str:
        """What is to be said of files that are no checkpoints of this format; they are never opened."""
        old = sorted(path.name for path in self.checkpoints.glob("*.ckpt"))
        return f"\n  {', '.join(old)}: pickled, as moekit wrote them once; they are not read" if old else ""

    @property
    def dense(self) -> RunFolder:
        """The run of the dense model that this one is compared with."""
        return RunFolder(self.path / "dense")

    @property
    def whole(self) -> RunFolder:
        """The run that a dense model's run belongs to; any other is whole itself."""
        outer = RunFolder(self.path.parent)
        return outer if outer.dense.path == self.path and outer.spec.is_file() else self


def _no_checkpoint(path: Path, run: RunFolder) -> CheckpointError:
    there = "".join(f"\n    {checkpoint}" for checkpoint in steps_in(run.checkpoints).values()) or " none"
    return CheckpointError(
        f"{path} is a file of a run, and no checkpoint\n"
        f"  expected the run, meaning its last checkpoint: {run.name}\n"
        f"  or one of its checkpoints:{there}"
    )


def check_run_name(name: str) -> None:
    """Refuses a run's name that does not lead to a folder inside that of all runs. ``a/b`` does.

    Raises:
        MoekitError: saying what was expected.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not name.strip() or not path.parts:
        raise MoekitError(
            f"a run cannot be called '{name}': that is no folder inside the one for all runs\n"
            "  expected --name NAME: such as trial, or trials/first; --out DIR: the folder for all runs"
        )


def check_writable(path: Path) -> None:
    """Refuses a place for a run where nothing can be written, by a trial that leaves nothing behind.

    Args:
        path: a folder, there or to be made.

    Raises:
        MoekitError: saying why.
    """
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".moekit-", dir=there):
            pass
    except OSError as error:
        raise MoekitError(
            f"cannot write a run to {path}: {there}: {error.strerror}\n  expected --out DIR: a folder for all runs"
        ) from error


def checkpoint_of(run: str, root: Path = RUNS) -> Path:
    """The checkpoint that ``run`` means: itself one, or the last of a run folder or of a name's latest run.

    Raises:
        CheckpointError: nothing of that name, or no checkpoint there.
    """
    path = Path(run)
    if is_checkpoint(path):
        return target_of(path.parent, path.name) or path
    return RunFolder.find(run, root).checkpoint()
