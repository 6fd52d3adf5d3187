"""`planning.search`, its compiler replaced by a chip whose memory grows evenly with what it is given."""

from __future__ import annotations

import dataclasses
import math

import pytest

from salmonn_jax import aot, planning, projection, topologies
from salmonn_jax.aot import CompiledProgram
from salmonn_jax.configs import get_config
from salmonn_jax.projection import Projection

GB = 10**9
KEPT = {"full": 1.0, "dots": 2.5, "none": 4.0}  # bytes of an example's activations, in those of full remat
SPEED = {"full": 0.75, "dots": 0.9, "none": 1.0}


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled, in turn; frozen weights are 8 GB, and a row and its clips 100 MB with full remat."""
    plans = []

    def plan(config, topology, placement):
        sizes = planning.mesh_sizes(placement, topology)
        shards = topology.chips // sizes.get("tensor", 1)
        data, apart = config.data, math.prod(sizes.values())
        if placement == "tensor" and data.rows > shards:
            raise aot.CompilationError("the TPU compiler failed on the train step: INTERNAL")
        for size in (data.rows, data.clips):
            assert size % shards == 0
        assert data.streams == shards
        needed = round(8 * GB / apart + 0.1 * GB * KEPT[config.remat_policy] * data.rows / shards)
        program = CompiledProgram("train step", 8 * GB // apart, 0, 0, 0, needed, needed, (), 0.0, 1.0)
        # Larger steps are the better ones, as far as a placement is not slow by itself.
        rate = SPEED[config.remat_policy] * data.clips / (data.clips + shards) / apart
        projected = Projection(1.0, 0.1, 0.1, 0.4, rate, 1.0)
        config = dataclasses.replace(config, mesh=sizes)
        made = planning.Plan(config, sizes, program, None, projected, projection.fits(program, topology))
        plans.append(made)
        return made

    monkeypatch.setattr(planning, "make_plan", plan)
    return plans


@pytest.mark.parametrize(("name", "rows", "clips"), [("salmonn_7b_stage2", 1, 6), ("debug", 2, 1)])
def test_the_search_finds_the_most_that_fits(compiled, name, rows, clips):
    topology = topologies.get_topology("v5e-16", 1)
    told = []
    *_, best = planning.search(get_config(name), topology, ("replicate", "tensor", "fsdp"), told.append)
    room = (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes - 8 * GB
    most = 2 ** math.floor(math.log2(room / (0.1 * GB * KEPT["none"] * rows)))
    assert (best.config.mesh, best.config.remat_policy) == ({}, "none")
    assert (best.config.data.rows, best.config.data.clips) == (16 * most * rows, 16 * most * clips)
    assert best.fits and len(told) > len(compiled) and len(told) < 30
    assert sum("INTERNAL" in line for line in told) == len(told) - len(compiled)


def test_the_search_leaves_out_what_does_not_fit_at_all(compiled):
    topology = topologies.get_topology("v5e-16", 1)
    config = get_config("salmonn_7b_stage2")
    data = dataclasses.replace(config.data, rows=200, clips=1)  # nothing smaller has this proportion
    plans = planning.search(dataclasses.replace(config, data=data), topology, ("replicate",), lambda line: None)
    assert not any(plan.fits for plan in plans) and {plan.config.remat_policy for plan in plans} == {"full"}
