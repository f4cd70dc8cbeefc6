"""One paper from start to end: measures, judges, plots, and writes the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from moekit.component import imported
from moekit.registry import build
from moekit_reproduce import ledger
from moekit_reproduce.engine import Engine, Progress, by_seed, machine, versions
from moekit_reproduce.plot import draw
from moekit_reproduce.store import Store
from moekit_reproduce.study import ClaimSpec, Study

SILENT = Progress(step=lambda words: None, done=lambda line, kept: None)


def reproduce(
    name: str,
    spec: ClaimSpec,
    *,
    out: Path,
    page: Path | None = None,
    quick: bool = False,
    command: str = "",
    threads: int = 1,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measures a paper's claims. What is measured already below ``out`` is not repeated.

    Args:
        name: of the paper, in files and in the ledger.
        spec: the claim's options.
        out: folder of measurements.
        page: folder of the ledger, its JSON and its plots (default: ``out``).
        quick: whether ``spec`` is the quick form, which has folders of its own.
        command: as the ledger prints it.
        threads: of torch; results depend on it in the last digits.
        progress: is called at each step.

    Returns:
        What the ledger says about the paper.

    Raises:
        MoekitError: a recipe cannot be trained, or a file is damaged.
        OSError: the disk is full, or the like.
    """
    torch.set_num_threads(threads)
    study: Study = build(spec)
    form = "quick" if quick else ""
    folder = (page or out) / form
    found = Engine(study, spec, Store(out / form / "measurements" / name), progress).run()
    pictures = [draw(study, found, folder / "images" / f"ledger-{name}.png")]
    if study.pictures:
        pictures += imported(study.pictures, f"claim '{name}': cannot import its pictures")(
            study, found, folder / "images"
        )
    row = ledger.row_of(
        name,
        study,
        found,
        by_seed(found),
        command=command,
        about_run={
            "quick": quick,
            "machine": machine(),
            "versions": versions(),
            "pictures": [f"images/{path.name}" for path in pictures],
        },
    )
    ledger.write(folder, row)
    return row
