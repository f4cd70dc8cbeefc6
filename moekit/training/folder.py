"""The run folder: ``runs/<name>/<time>/`` with the spec, metrics, checkpoints and pictures of one run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from moekit.errors import CheckpointError
from moekit.registry import current

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies. Nothing is created before ``create``.

    Args:
        path: the folder.
    """

    path: Path

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
        """The folder that ``run`` means: a run folder, a file in one, or a name, meaning its latest with a checkpoint.

        Raises:
            CheckpointError: nothing of that name.
        """
        path = Path(run)
        if path.is_file():
            inside = [parent for parent in path.resolve().parents if (parent / "spec.yaml").is_file()]
            if inside:
                return cls(inside[0])
        if (path / "spec.yaml").is_file():
            return cls(path)
        for folder in (root / run, path):
            runs = [spec.parent for spec in folder.glob("*/spec.yaml") if (spec.parent / "checkpoints").is_dir()]
            if runs:
                begun = [run for run in runs if cls(run).last.is_file()] or runs  # one stopped too early is passed over
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
        """``last.ckpt`` and ``best.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.checkpoints / "best.ckpt"

    @property
    def dense(self) -> RunFolder:
        """The run of the dense model that this one is compared with."""
        return RunFolder(self.path / "dense")

    @property
    def whole(self) -> RunFolder:
        """The run that a dense model's run belongs to; any other is whole itself."""
        outer = RunFolder(self.path.parent)
        return outer if outer.dense.path == self.path and outer.spec.is_file() else self


def checkpoint_of(run: str, root: Path = RUNS) -> Path:
    """The checkpoint that ``run`` means: itself a file, or the last one of a run folder or of a name's latest run.

    Raises:
        CheckpointError: nothing of that name.
    """
    return Path(run) if Path(run).is_file() else RunFolder.find(run, root).last
