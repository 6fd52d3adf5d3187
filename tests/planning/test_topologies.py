"""Tests of TPU slices by name and by number of chips, and of the mesh for each placement."""

from __future__ import annotations

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.planning import planner, topologies


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "grid"),
    [
        ("v5p-128", 64, 16, "4x4x4"),
        ("v4-8", 4, 1, "2x2x1"),
        ("v5e-16", 16, 4, "4x4"),
        ("v5litepod-16", 16, 4, "4x4"),
        ("v6e-64", 64, 16, "8x8"),
    ],
)
def test_topology_by_name(name, chips, hosts, grid):
    topology = topologies.get_topology(name)
    assert (topology.chips, topology.hosts, topology.grid) == (chips, hosts, grid)
    assert topologies.get_topology(name, slices=2).chips == 2 * chips


def test_unknown_topology_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown topology 'v9-8'; choose one of v4-8, .*v5e-16.*v5p-128.*v6e-256"):
        topologies.get_topology("v9-8")


def test_topology_by_chips():
    assert topologies.get_topology_by_chips("v5p", 64) == topologies.get_topology("v5p-128")
    assert topologies.get_topology_by_chips("v5e", 32, slices=2) == topologies.get_topology("v5e-16", slices=2)
    with pytest.raises(UserError, match=r"v5e with 24 chips do not exist; choose one of \[4, 8, 16"):
        topologies.get_topology_by_chips("v5e", 24)
    with pytest.raises(UserError, match="did you mean 'v5p'"):
        topologies.get_topology_by_chips("v5pp", 64)


def test_every_generation_has_cloud_names_and_grids():
    assert topologies.CLOUD_NAMES.keys() == topologies.CHIPS.keys() == topologies.GRIDS.keys()


def test_mesh_sizes_of_placements():
    slices = topologies.get_topology("v5p-128", slices=2)
    assert planner.mesh_sizes("replicate", slices) == {}
    assert planner.mesh_sizes("tensor", slices) == {"tensor": 4}
    assert planner.mesh_sizes("fsdp", slices) == {"fsdp": 64}
