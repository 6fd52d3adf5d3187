"""Tests of `planner.search` with a fake compiler whose memory is linear in the batch size."""

from __future__ import annotations

import math

import pytest

from salmonn_jax.planning import aot, planner, projection, topologies
from salmonn_jax.planning.aot import CompiledProgram
from salmonn_jax.planning.projection import Projection

GB = 10**9
# Activation memory and speed of each remat policy, relative to those of "full" and "none".
ACTIVATION_MEMORY = {"full": 1.0, "dots": 2.5, "none": 4.0}
SPEED = {"full": 0.75, "dots": 0.9, "none": 1.0}


TOPOLOGY = topologies.get_topology("v5e-16", 1)


class FakeCompiler:
    """Stands for the compiler: frozen weights need 8 GB, and a row with its clips 100 MB if its remat policy is "full".

    It fails on meshes with the axis `tensor` and more than one row per chip.
    """

    def __init__(self):
        self.plans = []

    def __call__(self, trial):
        sizes = trial.mesh
        shards = TOPOLOGY.chips // sizes.get("tensor", 1)
        num_weight_shards = math.prod(sizes.values())
        if "tensor" in sizes and trial.rows > shards:
            raise aot.CompilationError("the TPU compiler failed on the train step: INTERNAL")
        for size in (trial.rows, trial.clips):
            assert size % shards == 0
        assert trial.streams == shards
        needed = round(
            8 * GB / num_weight_shards + 0.1 * GB * ACTIVATION_MEMORY[trial.remat_policy] * trial.rows / shards
        )
        program = CompiledProgram("train step", 8 * GB // num_weight_shards, 0, 0, 0, needed, needed, (), 0.0, 1.0)
        # The speed grows with the batch size and falls with the number of weight shards.
        clips_per_second = SPEED[trial.remat_policy] * trial.clips / (trial.clips + shards) / num_weight_shards
        projected = Projection(1.0, 0.1, 0.1, 0.4, clips_per_second, 1.0)
        fits = projection.fits(program, TOPOLOGY)
        self.plans.append(planner.Plan("fake", {}, trial, "512", 1, sizes, program, None, projected, fits))
        return self.plans[-1]


@pytest.mark.parametrize(("rows", "clips"), [(1, 6), (2, 1)])
def test_search_finds_the_largest_batch_that_fits(rows, clips):
    """The first batch has 64 times as many rows and clips; only their ratio matters."""
    log, compiler = [], FakeCompiler()
    trials = [
        planner.Trial(planner.mesh_sizes(placement, TOPOLOGY), 64 * rows, 64 * clips, 64, "full")
        for placement in ("replicate", "tensor", "fsdp")
    ]
    *_, best = planner.search(compiler, trials, TOPOLOGY, log.append)
    free_bytes = (1 - projection.HBM_HEADROOM) * TOPOLOGY.chip.hbm_bytes - 8 * GB
    multiple = 2 ** math.floor(math.log2(free_bytes / (0.1 * GB * ACTIVATION_MEMORY["none"] * rows)))
    assert (best.trial.mesh, best.trial.remat_policy) == ({}, "none")
    assert (best.trial.rows, best.trial.clips) == (16 * multiple * rows, 16 * multiple * clips)
    assert best.fits and len(log) > len(compiler.plans) and len(log) < 30
    assert sum("INTERNAL" in line for line in log) == len(log) - len(compiler.plans)


def test_search_without_a_plan_that_fits():
    trial = planner.Trial({}, rows=200, clips=1, streams=1, remat_policy="none")
    # No smaller batch has this ratio of rows to clips.
    plans = planner.search(FakeCompiler(), [trial], TOPOLOGY, lambda line: None)
    assert not any(plan.fits for plan in plans) and {plan.trial.remat_policy for plan in plans} == {"full"}
