"""Projected time of a train step on a slice, from the compiled program and the chip's specifications. Not measured.

Assumptions:
  * Matrix products reach `MATMUL_EFFICIENCY` of the chip's peak FLOP/s. Published training runs of dense models reach
    0.45 to 0.7.
  * Frozen weights are read from HBM twice per micro-batch, in the forward and the backward pass. The reads overlap with
    matrix products.
  * Collectives use a ring over one axis of the slice in both directions. They do not overlap with matrix products.
  * The data pipeline is never slower than the step.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.planning.accounting import StepFlops
from salmonn_jax.planning.aot import CompiledProgram
from salmonn_jax.planning.topologies import Topology

MATMUL_EFFICIENCY = 0.55
HBM_HEADROOM = 0.1  # fraction of a chip's memory that must stay free


@dataclasses.dataclass(frozen=True)
class Projection:
    """Projection of one train step. The module's docstring lists the assumptions.

    Attributes:
      products_seconds: time of the matrix products.
      memory_seconds: time of reading the frozen weights from HBM.
      collective_seconds: time of the collectives.
      mfu: model FLOPs utilisation, between 0 and 1.
      clips_per_second: clips per second on all chips.
      stage_hours: hours of the whole training stage.
    """

    products_seconds: float
    memory_seconds: float
    collective_seconds: float
    mfu: float
    clips_per_second: float
    stage_hours: float

    @property
    def step_seconds(self) -> float:
        """Returns the time of one step: the longer of matrix products and HBM reads, plus the collectives."""
        return max(self.products_seconds, self.memory_seconds) + self.collective_seconds


def project(
    program: CompiledProgram,
    flops: StepFlops,
    topology: Topology,
    *,
    clips: int,
    num_train_steps: int,
    gradient_accumulation_steps: int,
) -> Projection:
    """Returns the projection of a training stage.

    Args:
      program: the compiled train step.
      flops: FLOPs of the step on all chips.
      topology: the slices.
      clips: clips in a step.
      num_train_steps: steps of the stage.
      gradient_accumulation_steps: micro-batches of a step.
    """
    chip = topology.chip
    products = flops.hardware_flops / topology.chips / (MATMUL_EFFICIENCY * chip.peak_flops)
    memory = 2 * gradient_accumulation_steps * program.frozen / chip.hbm_bandwidth
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
    """Returns whether a program leaves HBM_HEADROOM of a chip's memory free."""
    return program.temporary is not None and program.needed <= (1 - HBM_HEADROOM) * topology.chip.hbm_bytes


def _collective_seconds(kind: str, size: int, topology: Topology) -> float:
    """Returns the time of one collective of `size` bytes."""
    num_passes = 2 if kind == "all-reduce" else 1  # an all-reduce is a reduce-scatter and an all-gather
    ici_seconds = num_passes * size / (2 * topology.chip.ici_bandwidth)
    crosses_slices = topology.slices > 1 and kind == "all-reduce"
    dcn_seconds = num_passes * size / topology.chip.dcn_bandwidth if crosses_slices else 0.0
    return ici_seconds + dcn_seconds
