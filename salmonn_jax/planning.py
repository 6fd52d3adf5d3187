"""Plans: which mesh, rows and remat a job is to have on a slice, and what it then costs. See `launch.plan`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any

from salmonn_jax import accounting, aot, projection, sharding
from salmonn_jax.accounting import StepFlops
from salmonn_jax.aot import CompiledProgram
from salmonn_jax.config import RunConfig, to_dict
from salmonn_jax.errors import UserError
from salmonn_jax.projection import Projection
from salmonn_jax.topologies import Topology

GB = 1e9
MAX_BATCH_MULTIPLE = 64  # times the fewest rows, in a search


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration compiled for a slice."""

    config: RunConfig  # with the mesh, rows and remat that were tried
    mesh: dict[str, int]
    train: CompiledProgram
    flops: StepFlops
    projection: Projection | None  # None where it does not fit
    fits: bool
    decoding: tuple[CompiledProgram, ...] = ()


def make_plan(config: RunConfig, topology: Topology, placement: str | None) -> Plan:
    """Compiles the train step of a configuration, its frozen weights placed so (None: as its own mesh says)."""
    if placement is not None:
        config = dataclasses.replace(config, mesh=mesh_sizes(placement, topology))
    mesh = sharding.make_mesh(config.mesh, aot.devices(topology))
    train = aot.compile_train_step(config, mesh, (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes)
    flops = accounting.step_flops(config, topology.chips)
    projected = None
    if train.temporary is not None:
        projected = projection.project(
            train, flops, topology, clips=config.data.clips, num_train_steps=config.num_train_steps
        )
    return Plan(config, dict(mesh.shape), train, flops, projected, projection.fits(train, topology))


def with_decoding(plan: Plan, topology: Topology) -> Plan:
    """The plan with the programs of decoding compiled too; it fits if they do."""
    mesh = sharding.make_mesh(plan.config.mesh, aot.devices(topology))
    programs = aot.compile_decoding(plan.config, mesh)
    fits = plan.fits and all(projection.fits(program, topology) for program in programs)
    return dataclasses.replace(plan, decoding=programs, fits=fits)


def mesh_sizes(placement: str, topology: Topology) -> dict[str, int]:
    """The mesh of a placement: frozen weights on every chip, over the four chips of a host, or over a whole slice."""
    chips = topology.chips // topology.slices
    return {"replicate": {}, "tensor": {"tensor": min(4, chips)}, "fsdp": {"fsdp": chips}}[placement]


def try_placements(
    config: RunConfig, topology: Topology, placements: Sequence[str | None], log: Callable[[str], Any]
) -> list[Plan]:
    """Tries placements in turn until one fits. Returns all that were tried; the last is the answer."""
    plans = []
    for placement in placements:
        plans.append(_make_and_log_plan(config, topology, placement, log))
        if plans[-1].fits:
            break
    return plans


def search(
    config: RunConfig, topology: Topology, placements: Sequence[str | None], log: Callable[[str], Any]
) -> list[Plan]:
    """Finds the most rows that fit, for each placement and remat. The last of the plans is projected the fastest.

    Rows and clips keep their proportion: the fewest of each on a data shard, times a power of two. Memory grows evenly
    with that, so two sizes tell about the others. A remat that keeps more needs more, so each begins with the most that
    fitted the one before. What the compiler fails on is told, and passed over.
    """
    plans = []
    together = math.gcd(config.data.rows, config.data.clips)
    for placement in placements:
        sizes = config.mesh if placement is None else mesh_sizes(placement, topology)
        shards = topology.chips // sizes.get("tensor", 1)

        @functools.cache
        def fitting(remat: str, times: int, placement: str | None = placement, shards: int = shards) -> Plan | None:
            rows, clips = (times * shards * n // together for n in (config.data.rows, config.data.clips))
            data = dataclasses.replace(config.data, rows=rows, clips=clips, streams=shards)
            try:
                plans.append(
                    _make_and_log_plan(
                        dataclasses.replace(config, remat_policy=remat, data=data), topology, placement, log
                    )
                )
            except aot.CompilationError as error:
                log(f"{placement or config.mesh}, {rows} rows, {clips} clips, remat {remat}: {error}")
                return None
            return plans[-1] if plans[-1].fits else None

        one, four = fitting("full", 1), fitting("full", 4)
        times = _max_batch_multiple(one, four, topology) if one else 0
        for remat in ("full", "dots", "none"):
            while times and not fitting(remat, times):
                times //= 2
    if not plans:
        raise UserError(f"the TPU compiler failed on all that was tried for {topology.name}; try another topology")
    fits = [p for p in plans if p.fits]
    best = max(fits, key=lambda p: p.projection.clips_per_second) if fits else plans[-1]
    return [*(p for p in plans if p is not best), best]


def _max_batch_multiple(plan_1x: Plan, plan_4x: Plan | None, topology: Topology) -> int:
    """How many times the fewest rows should fit: a power of two, from the plans with one and with four times them."""
    if plan_4x is None:
        return 2
    room = (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes - plan_1x.train.needed
    each = (plan_4x.train.needed - plan_1x.train.needed) / 3
    most = MAX_BATCH_MULTIPLE if each <= 0 else min(MAX_BATCH_MULTIPLE, 1 + room / each)
    return 2 ** math.floor(math.log2(most))


def report_lines(plan: Plan, topology: Topology) -> list[str]:
    """Lines for a person."""
    c, hbm = plan.config, topology.chip.hbm_bytes
    heads = ("frozen", "trained", "optim.", "batch", "temp.", "needed")
    lines = [
        f"{c.name} on {topology.slices} x {topology.name} ({topology.chips} chips, {topology.hosts} hosts)",
        f"mesh {plan.mesh}, remat {c.remat_policy}; a step has {c.data.clips} clips and {c.data.rows} rows of "
        f"{'at most ' if c.data.buckets else ''}{c.data.seq_len} tokens",
        "",
        " ".join([f"{'GB of a chip':14}", *(f"{head:>8}" for head in heads), f"of {hbm / GB:.1f}"]),
    ]
    for program in (plan.train, *plan.decoding):
        held = (program.frozen, program.trained, program.optimizer, program.batch)
        temporary = f"{program.temporary / GB:8.2f}" if program.temporary is not None else f"{'-':>8}"
        verdict = "fits" if projection.fits(program, topology) else "DOES NOT FIT with 10 % to spare"
        cells = " ".join(f"{x / GB:8.2f}" for x in held)
        lines.append(f"{program.name:14} {cells} {temporary} {program.needed / GB:8.2f} {verdict}")
    lines += ["", "collectives of a train step (MB handed over by a chip, times they run):"]
    for one in plan.train.collectives:
        lines.append(f"  {one.kind:18} {one.bytes / 1e6:10.3f} MB x {one.times:<4} {one.source[-70:]}")
    parts = {f.name: getattr(plan.flops, f.name) for f in dataclasses.fields(plan.flops)}
    told = ", ".join(f"{name} {value / 1e12:.1f}" for name, value in parts.items())
    lines += ["", f"TFLOP of a step over all chips: {told}"]
    if plan.projection is not None:
        p = plan.projection
        lines += [
            "",
            f"PROJECTED, not measured (products at {projection.MATMUL_EFFICIENCY:.0%} of peak, nothing overlaps; see "
            "salmonn_jax/projection.py):",
            f"  step {p.step_seconds:.3f} s = max(products {p.products_seconds:.3f}, memory {p.memory_seconds:.3f}) + "
            f"collectives {p.collective_seconds:.3f}; MFU {p.mfu:.0%}; {p.clips_per_second:.0f} clips/s",
            f"  {c.num_train_steps} steps: {p.stage_hours:.1f} hours, {p.stage_hours * topology.chips:.0f} chip-hours",
        ]
    return lines


def plan_to_dict(plan: Plan, topology: Topology) -> dict[str, Any]:
    """The plan as data."""

    def program(of: CompiledProgram) -> dict[str, Any]:
        values = dataclasses.asdict(of)
        del values["hlo_text"]
        return values

    projected = plan.projection and dataclasses.asdict(plan.projection)
    if projected:
        projected["step_seconds"] = plan.projection.step_seconds
    return {
        "config": to_dict(plan.config),
        "topology": {"name": topology.name, "slices": topology.slices, "chips": topology.chips, "grid": topology.grid},
        "mesh": plan.mesh,
        "fits": plan.fits,
        "hbm": topology.chip.hbm_bytes,
        "programs": [program(p) for p in (plan.train, *plan.decoding)],
        "flops": dataclasses.asdict(plan.flops),
        "projection": projected,
        "assumptions": projection.__doc__,
        "compiler": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


def _make_and_log_plan(config: RunConfig, topology: Topology, placement: str | None, log: Callable[[str], Any]) -> Plan:
    made = make_plan(config, topology, placement)
    c = made.config
    seconds = made.train.compile_seconds
    log(
        f"{placement or made.mesh}, {c.data.rows} rows, {c.data.clips} clips, remat {c.remat_policy}: "
        f"{made.train.needed / GB:.1f} GB of a chip, {'fits' if made.fits else 'does not fit'} "
        f"({f'compiled in {seconds:.0f} s' if seconds else 'its inputs alone, not compiled'})"
    )
    return made
