"""TPU slices: what a chip can do, and how chips are arranged. Figures are the makers' and those of the scaling book.

A slice has the name under which it is ordered. Those of v4 and v5p count TensorCores, two a chip: v5p-128 is 64 chips.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from salmonn_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation.

    Attributes:
      kind: as the compiler names it.
      config: how the compiler is to see its cores: as one device.
      hbm: bytes of memory that a program may use.
      flops: bfloat16 operations a second.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second over one link of the slice, one way.
      dcn_bandwidth: bytes a second of a chip's share of the network between slices.
      host: chips of one host, as a grid.
      cores: by which the names of slices count.
    """

    kind: str
    chip_config_name: str
    hbm_bytes: float
    peak_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    chips_per_host_bounds: tuple[int, ...]
    cores_per_chip: int


_GIB = 2**30
CHIPS = {
    "v4": Chip("v4", "megacore", 30.75 * _GIB, 275e12, 1.23e12, 45e9, 6.25e9, (2, 2, 1), 2),
    "v5e": Chip("v5e", "default", 15.75 * _GIB, 197e12, 0.81e12, 45e9, 3.1e9, (2, 2), 1),
    "v5p": Chip("v5p", "default", 95.74 * _GIB, 459e12, 2.77e12, 90e9, 6.25e9, (2, 2, 1), 2),
    "v6e": Chip("v6e", "default", 31.25 * _GIB, 918e12, 1.64e12, 90e9, 12.5e9, (2, 2), 1),
}


class CloudNames(NamedTuple):
    """How Google Cloud names a generation where slices are ordered."""

    accelerator_type: str  # in gcloud, before the size
    runtime_version: str  # the image of its TPU VMs
    gke_accelerator: str  # the label of GKE's nodes


CLOUD_NAMES = {
    "v4": CloudNames("v4", "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": CloudNames("v5litepod", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v5p": CloudNames("v5p", "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": CloudNames("v6e", "v2-alpha-tpuv6e", "tpu-v6e-slice"),
}
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
GRIDS = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices."""

    name: str
    chip: Chip
    grid: str
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return _count(self.grid) * self.slices

    @property
    def hosts(self) -> int:
        """Of all slices."""
        return max(1, self.chips // math.prod(self.chip.chips_per_host_bounds))


def get_topology(name: str, slices: int = 1) -> Topology:
    """Equal slices of this name, such as v5p-128 or v5litepod-16. Raises UserError, listing what there is."""
    for topology in all_topologies():
        if name in (topology.name, topology.name.replace("v5e-", "v5litepod-")):
            return dataclasses.replace(topology, slices=slices)
    raise UserError(f"unknown topology {name!r}; there are {', '.join(t.name for t in all_topologies())}")


def get_topology_by_chips(generation: str, chips: int, slices: int = 1) -> Topology:
    """Equal slices of this generation that have so many chips in all. Raises UserError, listing what there is."""
    if generation not in CHIPS:
        raise unknown_name("TPU generation", generation, CHIPS)
    found = {slices * t.chips: t for t in all_topologies() if t.chip is CHIPS[generation]}
    if chips not in found:
        raise UserError(f"{slices} slice(s) of {generation} with {chips} chips do not exist; there are {list(found)}")
    return dataclasses.replace(found[chips], slices=slices)


def all_topologies() -> list[Topology]:
    """All slices there are, by generation and size."""
    return [
        Topology(f"{generation}-{_count(grid) * CHIPS[generation].cores_per_chip}", CHIPS[generation], grid)
        for generation, grids in GRIDS.items()
        for grid in grids
    ]


def _count(grid: str) -> int:
    return math.prod(map(int, grid.split("x")))
