"""TPU slices: chip specifications, topologies and Google Cloud names, used by `launch.plan` and `launch.submit`.

Specifications are from Google's documentation and the book "How to Scale Your Model". The name of a slice
consists of a generation and a size, such as v5e-16. The size is the number of chips, or in v4 and v5p the number of
TensorCores, of which a chip has two: v5p-128 has 64 chips.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from salmonn_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specifications of one TPU generation, per chip.

    Attributes:
      kind: name of the generation in the TPU compiler.
      chip_config_name: compiler option that makes each chip one JAX device, even if it has two cores.
      hbm_bytes: bytes of HBM that a program may use.
      peak_flops: peak bfloat16 FLOP/s.
      hbm_bandwidth: bytes/s between HBM and the chip.
      ici_bandwidth: bytes/s over one link within the slice, in one direction.
      dcn_bandwidth: bytes/s of a chip's share of the network between slices.
      chips_per_host_bounds: grid of the chips of one host.
      cores_per_chip: factor between the number of chips and the number in the name of a slice.
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
    """Names of a TPU generation in Google Cloud."""

    accelerator_type: str  # prefix of gcloud's accelerator type; the size follows
    runtime_version: str  # image of the TPU VMs
    gke_accelerator: str  # label of the GKE nodes


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
    """One or more equal slices of one generation.

    Attributes:
      name: name of one slice, such as v5p-128.
      chip: specifications of the generation.
      grid: arrangement of the chips of one slice, such as 4x4x4.
      slices: number of slices.
    """

    name: str
    chip: Chip
    grid: str
    slices: int = 1

    @property
    def chips(self) -> int:
        """Returns the number of chips in all slices."""
        return _count(self.grid) * self.slices

    @property
    def hosts(self) -> int:
        """Returns the number of hosts in all slices."""
        return max(1, self.chips // math.prod(self.chip.chips_per_host_bounds))


def get_topology(name: str, slices: int = 1) -> Topology:
    """Returns `slices` slices of this name, such as v5p-128 or v5litepod-16. Raises UserError for an unknown name."""
    for topology in all_topologies():
        if name in (topology.name, topology.name.replace("v5e-", "v5litepod-")):
            return dataclasses.replace(topology, slices=slices)
    raise UserError(f"unknown topology {name!r}; choose one of {', '.join(t.name for t in all_topologies())}")


def get_topology_by_chips(generation: str, chips: int, slices: int = 1) -> Topology:
    """Returns equal slices of a generation by the total number of chips.

    Args:
      generation: key of `CHIPS`, such as v5p.
      chips: number of chips in all slices.
      slices: number of slices.

    Raises:
      UserError: the generation is unknown, or has no slices of this size.
    """
    if generation not in CHIPS:
        raise unknown_name("TPU generation", generation, CHIPS)
    topologies_by_chips = {slices * t.chips: t for t in all_topologies() if t.chip is CHIPS[generation]}
    if chips not in topologies_by_chips:
        raise UserError(
            f"{slices} slice(s) of {generation} with {chips} chips do not exist; choose one of "
            f"{list(topologies_by_chips)} chips"
        )
    return dataclasses.replace(topologies_by_chips[chips], slices=slices)


def all_topologies() -> list[Topology]:
    """Returns all single slices, ordered by generation and size."""
    return [
        Topology(f"{generation}-{_count(grid) * CHIPS[generation].cores_per_chip}", CHIPS[generation], grid)
        for generation, grids in GRIDS.items()
        for grid in grids
    ]


def _count(grid: str) -> int:
    """Returns the number of chips in a grid such as 4x4x8."""
    return math.prod(map(int, grid.split("x")))
