"""How fast a step would be on a slice: projected from the compiled program and the chip's data sheet, never measured.

The assumptions, which are printed with every figure:
  * matrix products reach `REACHED` of the chip's peak (published training runs of dense models reach 0.45 to 0.7);
  * frozen weights are read from memory twice a step (forward and backward), and that does not overlap with products;
  * collectives go round a ring of one axis of the slice, both ways at once, and do not overlap with products;
  * the data pipeline keeps up.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.accounting import StepFlops
from salmonn_jax.aot import CompiledProgram
from salmonn_jax.topologies import Topology

MATMUL_EFFICIENCY = 0.55
HBM_HEADROOM = 0.1  # of a chip's memory that is to stay free


@dataclasses.dataclass(frozen=True)
class Projection:
    """Of one training step; see the module for what it assumes."""

    products_seconds: float
    memory_seconds: float
    collective_seconds: float
    mfu: float
    clips_per_second: float
    stage_hours: float

    @property
    def step_seconds(self) -> float:
        return max(self.products_seconds, self.memory_seconds) + self.collective_seconds


def project(
    program: CompiledProgram, flops: StepFlops, topology: Topology, *, clips: int, num_train_steps: int
) -> Projection:
    """Projects a stage of `steps` steps on `clips` clips each."""
    chip = topology.chip
    products = flops.hardware_flops / topology.chips / (MATMUL_EFFICIENCY * chip.peak_flops)
    memory = 2 * program.frozen / chip.hbm_bandwidth
    collective = sum(c.times * _collective_seconds(c.kind, c.bytes, topology) for c in program.collectives)
    seconds = max(products, memory) + collective
    return Projection(
        products_seconds=products,
        memory_seconds=memory,
        collective_seconds=collective,
        mfu=flops.model_flops / topology.chips / chip.peak_flops / seconds,
        clips_per_second=clips / seconds,
        stage_hours=num_train_steps * seconds / 3600,
    )


def fits(program: CompiledProgram, topology: Topology) -> bool:
    """Whether a program leaves the margin free."""
    return program.temporary is not None and program.needed <= (1 - HBM_HEADROOM) * topology.chip.hbm_bytes


def _collective_seconds(kind: str, size: int, topology: Topology) -> float:
    passes = 2 if kind == "all-reduce" else 1  # a reduce-scatter, and an all-gather of what it gave
    within = passes * size / (2 * topology.chip.ici_bandwidth)
    between = passes * size / topology.chip.dcn_bandwidth if topology.slices > 1 and kind == "all-reduce" else 0.0
    return within + between
