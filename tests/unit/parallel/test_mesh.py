"""Meshes need a process group. Their layout is tested in several processes (``expert_parallel_run``)."""

from __future__ import annotations

import pytest

from moekit.parallel.mesh import expert_mesh, mesh_coordinate, world_mesh


def test_a_mesh_needs_a_process_group() -> None:
    with pytest.raises(RuntimeError, match=r"no process group: call torch\.distributed\.init_process_group first"):
        world_mesh("cpu")
    with pytest.raises(RuntimeError, match="no process group"):
        expert_mesh(2, "cpu")
    with pytest.raises(RuntimeError, match="no process group"):
        mesh_coordinate(1)
