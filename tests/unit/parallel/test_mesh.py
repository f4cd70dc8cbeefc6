"""Laying out ranks needs ranks: how they are laid out is tested in several processes (``expert_parallel_run``)."""

from __future__ import annotations

import pytest

from moekit.parallel.mesh import expert_mesh, mesh_coordinate, world_mesh


def test_one_process_has_no_mesh() -> None:
    with pytest.raises(RuntimeError, match="no process group: several processes train together once torch"):
        world_mesh("cpu")
    with pytest.raises(RuntimeError, match="no process group"):
        expert_mesh(2, "cpu")
    with pytest.raises(RuntimeError, match="no process group"):
        mesh_coordinate(1)
