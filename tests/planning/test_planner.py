"""Tests of `planner.search` with a fake compiler whose memory is linear in the batch size."""

from __future__ import annotations

import dataclasses
import math

import pytest

from salmonn_jax.configs import get_config
from salmonn_jax.planning import aot, planner, projection, topologies
from salmonn_jax.planning.aot import CompiledProgram
from salmonn_jax.planning.projection import Projection

GB = 10**9
# Activation memory and speed of each remat policy, relative to those of "full" and "none".
ACTIVATION_MEMORY = {"full": 1.0, "dots": 2.5, "none": 4.0}
SPEED = {"full": 0.75, "dots": 0.9, "none": 1.0}


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compiler and returns the list of compiled plans.

    Frozen weights need 8 GB. A row with its clips needs 100 MB with the remat policy "full".
    """
    plans = []

    def fake_make_plan(config, topology, placement):
        sizes = planner.mesh_sizes(placement, topology)
        shards = topology.chips // sizes.get("tensor", 1)
        data, num_weight_shards = config.data, math.prod(sizes.values())
        if placement == "tensor" and data.rows > shards:
            raise aot.CompilationError("the TPU compiler failed on the train step: INTERNAL")
        for size in (data.rows, data.clips):
            assert size % shards == 0
        assert data.streams == shards
        needed = round(
            8 * GB / num_weight_shards + 0.1 * GB * ACTIVATION_MEMORY[config.remat_policy] * data.rows / shards
        )
        program = CompiledProgram("train step", 8 * GB // num_weight_shards, 0, 0, 0, needed, needed, (), 0.0, 1.0)
        # The speed grows with the batch size and falls with the number of weight shards.
        clips_per_second = SPEED[config.remat_policy] * data.clips / (data.clips + shards) / num_weight_shards
        projected = Projection(1.0, 0.1, 0.1, 0.4, clips_per_second, 1.0)
        config = dataclasses.replace(config, mesh=sizes)
        plan = planner.Plan(config, sizes, program, None, projected, projection.fits(program, topology))
        plans.append(plan)
        return plan

    monkeypatch.setattr(planner, "make_plan", fake_make_plan)
    return plans


@pytest.mark.parametrize(("name", "rows", "clips"), [("salmonn_7b_stage2", 1, 6), ("debug", 2, 1)])
def test_search_finds_the_largest_batch_that_fits(compiled, name, rows, clips):
    topology = topologies.get_topology("v5e-16", 1)
    log = []
    *_, best = planner.search(get_config(name), topology, ("replicate", "tensor", "fsdp"), log.append)
    free_bytes = (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes - 8 * GB
    multiple = 2 ** math.floor(math.log2(free_bytes / (0.1 * GB * ACTIVATION_MEMORY["none"] * rows)))
    assert (best.config.mesh, best.config.remat_policy) == ({}, "none")
    assert (best.config.data.rows, best.config.data.clips) == (16 * multiple * rows, 16 * multiple * clips)
    assert best.fits and len(log) > len(compiled) and len(log) < 30
    assert sum("INTERNAL" in line for line in log) == len(log) - len(compiled)


def test_search_without_a_plan_that_fits(compiled):
    topology = topologies.get_topology("v5e-16", 1)
    config = get_config("salmonn_7b_stage2")
    data = dataclasses.replace(config.data, rows=200, clips=1, streams=1, lookahead=200)
    # No smaller batch has this proportion of rows and clips
    plans = planner.search(dataclasses.replace(config, data=data), topology, ("replicate",), lambda line: None)
    assert not any(plan.fits for plan in plans) and {plan.config.remat_policy for plan in plans} == {"full"}
