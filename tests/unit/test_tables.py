"""Tables of columns: what is written is read, from several files as one; a damaged file is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moekit.errors import MoekitError
from moekit.tables import read_tables, table_files
from moekit_report.routing.writing import save_tables


def test_tables_of_several_files_are_read_as_one_in_the_order_of_steps(tmp_path: Path) -> None:
    for step, layers in ((100, ("b",)), (20, ("a", "b")), (9, ("b", "a"))):
        column = np.arange(len(layers), dtype=np.int16)
        tables = {"x": {"step": np.full(len(layers), step), "layer": column}, "y": {"load": np.array([step])}}
        save_tables(tmp_path / f"step-{step}.npz", tables, {"layer": layers, "absent": ()})
    (tmp_path / "other.npz").write_bytes(b"not one of them")
    found = read_tables(tmp_path)
    assert found["x"]["step"].tolist() == [9, 9, 20, 20, 100]
    assert found["x"]["layer"].tolist() == ["b", "a", "a", "b", "b"]
    assert found["y"]["load"].tolist() == [9, 20, 100]
    assert [path.name for path in table_files(tmp_path)] == ["step-9.npz", "step-20.npz", "step-100.npz"]
    assert read_tables(tmp_path / "none") == {}


def test_numpy_alone_reads_a_file(tmp_path: Path) -> None:
    save_tables(tmp_path / "step-1.npz", {"x": {"layer": np.array([1, 0])}}, {"layer": ("a", "b")})
    with np.load(tmp_path / "step-1.npz") as saved:
        assert saved["x.layer.names"][saved["x.layer"]].tolist() == ["b", "a"]


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "step-1.npz"
    save_tables(path, {"x": {"a": np.arange(100)}})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(MoekitError, match=r"step-1\.npz cannot be read"):
        read_tables(tmp_path)
    save_tables(tmp_path / "step-2.npz", {"x": {"a": np.arange(3)}})
    errors: list[MoekitError] = []
    assert read_tables(tmp_path, damaged=errors.append)["x"]["a"].tolist() == [0, 1, 2] and len(errors) == 1


def test_a_file_with_any_bit_flipped_is_read_or_refused(tmp_path: Path) -> None:
    path, column = tmp_path / "step-00000001.npz", np.arange(50)
    np.savez_compressed(path, **{"a.x": column, "a.y": column % 3, "a.y.names": np.array(["p", "q", "r"])})
    whole, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 5):
        path.write_bytes(bytes(byte ^ (1 << bit % 8) if n == bit // 8 else byte for n, byte in enumerate(whole)))
        try:
            read_tables(tmp_path)
        except MoekitError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > len(whole) / 2
