"""The callback that records statistics of routing in ``routing/`` in the run's folder.

A logged step is recorded from all its micro-batches, a validation from all its batches, on all ranks together. The
other steps cost nothing. Files are written with every checkpoint, so that a resumed run has what it had.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from moekit.contracts import Batch, ModelOutput
from moekit.errors import CheckpointError, MoekitError
from moekit.files import discard
from moekit.tables import FILE, read_tables, table_files
from moekit.training.metrics import is_logged_step
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import LogWrites, lost_rows
from moekit_report.routing import RoutingStatistics
from moekit_report.routing.classes import CLASSES, class_V
from moekit_report.routing.panels import loads_of, numbers_of, show_loads, show_numbers, show_report
from moekit_report.routing.recording import PARTS, TRAIN, VALIDATION, Passes, Rows, joined
from moekit_report.routing.writing import save_tables

FOLDER = "routing"


class RoutingRecorder(Callback):
    """Records the routing of a ``LitMoE``.

    Args:
        train: whether to record logged steps of training.
        validation: whether to record validations.
        panels: whether loggers are shown the same.
        writes: writes the files.
    """

    def __init__(
        self, *, train: bool = True, validation: bool = True, panels: bool = True, writes: LogWrites | None = None
    ) -> None:
        self.train = train
        self.validation = validation
        self.panels = panels
        self._rows: list[Rows] = []
        self._names: list[str] = []
        self._step: Passes | None = None
        self._epoch: Passes | None = None
        self._steps_before = self._skips_before = 0
        self._recorded = 0  # the last step that has rows
        self._first: dict[tuple[str, int], Tensor] = {}
        self._shared = writes is not None
        self._writes = writes or LogWrites()
        self._trainer: L.Trainer
        self._module: LitMoE

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listens to the module.

        Raises:
            MoekitError: it is not a ``LitMoE``.
        """
        if not isinstance(pl_module, LitMoE):
            kind = type(pl_module).__name__
            raise MoekitError(
                f"the callback 'routing' records a LitMoE, not {kind}\n  expected Trainer.fit(LitMoE(...))"
            )
        self._trainer, self._module = trainer, pl_module
        if stage == "fit":
            pl_module.observers.append(self._observe)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Listens no longer, and reports a file that could not be written to the last."""
        if not self._shared:  # a run ends its own
            self._writes.end()
        if self._observe in pl_module.observers:
            pl_module.observers.remove(self._observe)

    def state_dict(self) -> dict[str, Any]:
        """The last step that has rows."""
        return {"step": self._recorded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it.

        Raises:
            CheckpointError: the state is of another form.
        """
        if not isinstance(state_dict.get("step"), int):
            raise CheckpointError("the state of RoutingRecorder has no step")
        self._recorded = state_dict["step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Removes the files of later steps, which a resumed run trains again; reports what those before lack.

        A second file of the same step is of a validation that a resumed run made up for, and will again.
        """
        self._steps_before, self._skips_before = trainer.global_step, pl_module.skips.count
        if not trainer.is_global_zero:
            return
        for path in table_files(self._folder()):
            match = FILE.fullmatch(path.name)
            if match and (int(match[1]), match[2] is not None) > (trainer.global_step, False):
                discard(path)
        damages: list[str] = []
        found = read_tables(self._folder(), damaged=lambda error: damages.append(str(error).splitlines()[0]))
        steps = found["experts"]["step"].tolist() if found else []
        if missing := lost_rows("; ".join(f"is damaged: {each}" for each in damages), steps, self._recorded):
            self._writes.report(f"{self._folder()} {missing}: training does not need it, and logs on")

    def _observe(self, output: ModelOutput, batch: Batch) -> None:
        if self._trainer.validating or self._trainer.sanity_checking:
            if self._epoch is not None:
                self._epoch.add(output, batch)
        elif self.train and (is_logged_step(self._trainer) or self._trainer.global_step + 1 == self._trainer.max_steps):
            if self._step is None:
                self._step = Passes(self._module.balance.layers, TRAIN)
            self._step.add(output, batch)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Adds the rows of a step that ended. One that was skipped because it was not finite has none."""
        if trainer.global_step == self._steps_before:
            return
        skipped = pl_module.skips.count > self._skips_before
        self._steps_before, self._skips_before = trainer.global_step, pl_module.skips.count
        step, self._step = self._step, None
        if step is not None and not skipped:
            self._take(step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begins the statistics of a validation."""
        self._epoch = None
        if self.validation and trainer.state.fn == "fit" and not trainer.sanity_checking:
            data = self._module.data
            spelling = () if data is None or data.tokenizer is None else data.tokenizer.spelling
            self._epoch = Passes(
                self._module.balance.layers,
                VALIDATION,
                domains=0 if data is None else len(data.domain_names()),
                class_V=class_V(spelling) if spelling else None,
                before=self._first,
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Adds the rows of a whole validation. One that was abandoned has none."""
        epoch, self._epoch = self._epoch, None
        if epoch is not None and pl_module.validated_step == trainer.global_step:
            self._take(epoch)
            self._first = epoch.first
            self._write()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Writes the rows up to this checkpoint."""
        self._write()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Writes the last rows."""
        self._write()

    def _take(self, passes: Passes) -> None:
        self._names = list(dict.fromkeys([*self._names, *self._module.balance.layers]))
        rows = passes.take(self._trainer.global_step, self._names)
        if rows:
            self._recorded = self._trainer.global_step
            if self._trainer.is_global_zero:
                self._rows.append(rows)
                if self.panels:
                    self._show(rows, passes.part)

    def _show(self, rows: Rows, part: int) -> None:
        step, numbers = self._trainer.global_step, numbers_of(rows, self._names)
        self._module.each_logger(lambda logger: show_numbers(logger, numbers, step))
        if part == VALIDATION:
            loads = loads_of(rows, self._names)
            self._module.each_logger(lambda logger: show_loads(logger, loads, step))

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Shows loggers what was recorded as a report, if this is a run with a folder."""
        folder = RunFolder(Path(trainer.default_root_dir))
        if self.panels and self._recorded and trainer.is_global_zero and folder.spec.is_file():
            from moekit.run import Run
            from moekit_report.contents import contents

            try:
                shown = contents(Run(folder, pl_module.recipe), model=False)
            except MoekitError:  # a damaged file, which was reported when the run was resumed
                return
            pl_module.each_logger(partial(show_report, shown))

    def _folder(self) -> Path:
        return Path(self._trainer.default_root_dir) / FOLDER

    def _write(self) -> None:
        """Writes a new file of the rows since the last; keeps them if it cannot be written."""
        if not self._rows:
            return
        tables = {t: joined([rows[t] for rows in self._rows if t in rows]) for rows in self._rows for t in rows}
        data = self._module.data
        names = {"layer": self._names, "part": PARTS, "class": CLASSES}
        names["domain"] = () if data is None else data.domain_names()
        stem = f"step-{self._trainer.global_step:08d}"
        taken = len(list(self._folder().glob(f"{stem}*.npz")))
        path = self._folder() / (f"{stem}-{taken}.npz" if taken else f"{stem}.npz")

        def write() -> None:
            save_tables(path, tables, names)
            self._rows = []

        self._writes.attempt(path, write)


def routing_statistics(spec: RoutingStatistics) -> RoutingRecorder:
    """The callback of a spec."""
    return RoutingRecorder(train=spec.train, validation=spec.validation, panels=spec.panels)
