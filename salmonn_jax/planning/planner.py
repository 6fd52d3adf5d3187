"""Choice of mesh, batch size and remat policy for a training job on a slice, and its cost. Used by `launch.plan`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any

from salmonn_jax import sharding
from salmonn_jax.config import RunConfig, to_dict
from salmonn_jax.errors import UserError
from salmonn_jax.planning import accounting, aot, projection
from salmonn_jax.planning.accounting import StepFlops
from salmonn_jax.planning.aot import CompiledProgram
from salmonn_jax.planning.projection import Projection
from salmonn_jax.planning.topologies import Topology

GB = 1e9
MAX_BATCH_MULTIPLE = 64  # in a search, largest multiple of the smallest batch


@dataclasses.dataclass(frozen=True)
class Plan:
    """Configuration compiled for a slice.

    Attributes:
      config: run configuration with the mesh, batch size and remat policy of this plan.
      mesh: size of each mesh axis.
      train: the compiled train step.
      flops: FLOPs of a step on all chips.
      projection: projected speed; None if the train step does not fit.
      fits: whether all programs leave `projection.HBM_HEADROOM` of a chip's memory free.
      decoding: the compiled decoding programs, if `with_decoding` added them.
    """

    config: RunConfig
    mesh: dict[str, int]
    train: CompiledProgram
    flops: StepFlops
    projection: Projection | None
    fits: bool
    decoding: tuple[CompiledProgram, ...] = ()


def make_plan(config: RunConfig, topology: Topology, placement: str | None) -> Plan:
    """Compiles the train step of a configuration and projects its speed.

    Args:
      config: run configuration.
      topology: the slices.
      placement: placement of the frozen weights, see `mesh_sizes`; None keeps the configuration's mesh.

    Raises:
      UserError: the compiler is missing or failed, or the batch cannot be split over the mesh.
    """
    if placement is not None:
        config = dataclasses.replace(config, mesh=mesh_sizes(placement, topology))
    mesh = sharding.make_mesh(config.mesh, aot.devices(topology))
    train = aot.compile_train_step(config, mesh, (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes)
    flops = accounting.step_flops(config, topology.chips)
    step_projection = None
    if train.temporary is not None:
        step_projection = projection.project(
            train, flops, topology, clips=config.data.clips, num_train_steps=config.num_train_steps
        )
    return Plan(config, dict(mesh.shape), train, flops, step_projection, projection.fits(train, topology))


def with_decoding(plan: Plan, topology: Topology) -> Plan:
    """Returns the plan with compiled decoding programs. It fits only if they fit too."""
    mesh = sharding.make_mesh(plan.config.mesh, aot.devices(topology))
    programs = aot.compile_decoding(plan.config, mesh)
    fits = plan.fits and all(projection.fits(program, topology) for program in programs)
    return dataclasses.replace(plan, decoding=programs, fits=fits)


def mesh_sizes(placement: str, topology: Topology) -> dict[str, int]:
    """Returns the mesh sizes for a placement of the frozen weights.

    Args:
      placement: "replicate" (a copy on each chip), "tensor" (sharded over the four chips of a host) or "fsdp" (sharded
        over all chips of a slice).
      topology: the slices.
    """
    chips = topology.chips // topology.slices
    return {"replicate": {}, "tensor": {"tensor": min(4, chips)}, "fsdp": {"fsdp": chips}}[placement]


def try_placements(
    config: RunConfig, topology: Topology, placements: Sequence[str | None], log: Callable[[str], Any]
) -> list[Plan]:
    """Tries placements in order until one fits.

    Args:
      config: run configuration.
      topology: the slices.
      placements: arguments of `make_plan`.
      log: called with one line per plan.

    Returns:
      All tried plans. The last one is the result.
    """
    plans = []
    for placement in placements:
        plans.append(_make_and_log_plan(config, topology, placement, log))
        if plans[-1].fits:
            break
    return plans


def search(
    config: RunConfig, topology: Topology, placements: Sequence[str | None], log: Callable[[str], Any]
) -> list[Plan]:
    """Searches the largest batch that fits, for each placement and remat policy.

    Each candidate batch has the configuration's ratio of rows to clips. Its size is the smallest possible batch times a
    power of two. Memory is linear in this multiple, so plans with multiples 1 and 4 give an estimate of the largest
    one. The remat policies "full", "dots" and "none" need increasing memory, so the search with each starts at the
    largest multiple that fits with the policy before. Compiler failures are logged and skipped.

    Args:
      config: run configuration.
      topology: the slices.
      placements: arguments of `make_plan`.
      log: called with one line per plan.

    Returns:
      All tried plans. The last one has the highest projected speed of those that fit.

    Raises:
      UserError: the compiler failed on every plan.
    """
    plans = []
    gcd = math.gcd(config.data.rows, config.data.clips)
    for placement in placements:
        mesh_axes = config.mesh if placement is None else mesh_sizes(placement, topology)
        shards = topology.chips // mesh_axes.get("tensor", 1)

        @functools.cache
        def try_batch(
            remat: str, multiple: int, placement: str | None = placement, shards: int = shards
        ) -> Plan | None:
            """Returns the plan for `multiple` times the smallest batch; None if it does not fit or does not compile."""
            rows, clips = (multiple * shards * n // gcd for n in (config.data.rows, config.data.clips))
            lookahead = max(config.data.lookahead, rows // shards, clips // shards)
            data = dataclasses.replace(config.data, rows=rows, clips=clips, streams=shards, lookahead=lookahead)
            plan_config = dataclasses.replace(config, remat_policy=remat, data=data)
            try:
                plans.append(_make_and_log_plan(plan_config, topology, placement, log))
            except aot.CompilationError as error:
                log(f"{placement or config.mesh}, {rows} rows, {clips} clips, remat {remat}: {error}")
                return None
            return plans[-1] if plans[-1].fits else None

        plan_1x, plan_4x = try_batch("full", 1), try_batch("full", 4)
        multiple = _max_batch_multiple(plan_1x, plan_4x, topology) if plan_1x else 0
        for remat in ("full", "dots", "none"):
            while multiple and not try_batch(remat, multiple):
                multiple //= 2
    if not plans:
        raise UserError(f"the TPU compiler failed on every plan for {topology.name}; try another topology")
    fitting = [p for p in plans if p.fits]
    best = max(fitting, key=lambda p: p.projection.clips_per_second) if fitting else plans[-1]
    return [*(p for p in plans if p is not best), best]


def _max_batch_multiple(plan_1x: Plan, plan_4x: Plan | None, topology: Topology) -> int:
    """Estimates the largest power of two times the smallest batch that fits, from plans with 1 and 4 times it."""
    if plan_4x is None:
        return 2
    free_bytes = (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes - plan_1x.train.needed
    bytes_per_multiple = (plan_4x.train.needed - plan_1x.train.needed) / 3
    if bytes_per_multiple <= 0:
        return MAX_BATCH_MULTIPLE
    return 2 ** math.floor(math.log2(min(MAX_BATCH_MULTIPLE, 1 + free_bytes / bytes_per_multiple)))


def report_lines(plan: Plan, topology: Topology) -> list[str]:
    """Returns the lines of a readable report."""
    config, data, hbm = plan.config, plan.config.data, topology.chip.hbm_bytes
    heads = ("frozen", "trained", "optim.", "batch", "temp.", "needed")
    lines = [
        f"{config.name} on {topology.slices} x {topology.name} ({topology.chips} chips, {topology.hosts} hosts)",
        f"mesh {plan.mesh}, remat {config.remat_policy}; a step has {data.clips} clips and {data.rows} rows of "
        f"{'at most ' if data.buckets else ''}{data.seq_len} tokens",
        "",
        " ".join([f"{'GB on a chip':14}", *(f"{head:>8}" for head in heads), f"of {hbm / GB:.1f}"]),
    ]
    for program in (plan.train, *plan.decoding):
        input_bytes = (program.frozen, program.trained, program.optimizer, program.batch)
        temporary = f"{program.temporary / GB:8.2f}" if program.temporary is not None else f"{'-':>8}"
        verdict = (
            "fits"
            if projection.fits(program, topology)
            else f"DOES NOT FIT with {projection.HBM_HEADROOM:.0%} of the memory free"
        )
        cells = " ".join(f"{x / GB:8.2f}" for x in input_bytes)
        lines.append(f"{program.name:14} {cells} {temporary} {program.needed / GB:8.2f} {verdict}")
    lines += ["", "collectives of a train step (MB per chip x number of executions):"]
    for collective in plan.train.collectives:
        size = f"{collective.bytes / 1e6:10.3f} MB x {collective.times:<4}"
        lines.append(f"  {collective.kind:18} {size} {collective.source[-70:]}")
    flops_by_component = {f.name: getattr(plan.flops, f.name) for f in dataclasses.fields(plan.flops)}
    flops_text = ", ".join(f"{name} {value / 1e12:.1f}" for name, value in flops_by_component.items())
    lines += ["", f"TFLOP of a step on all chips: {flops_text}"]
    if plan.projection is not None:
        p = plan.projection
        lines += [
            "",
            f"PROJECTED, not measured (matrix products at {projection.MATMUL_EFFICIENCY:.0%} of peak; assumptions in "
            "salmonn_jax/planning/projection.py):",
            f"  step {p.step_seconds:.3f} s = max(products {p.products_seconds:.3f}, memory {p.memory_seconds:.3f}) + "
            f"collectives {p.collective_seconds:.3f}; MFU {p.mfu:.0%}; {p.clips_per_second:.0f} clips/s",
            f"  {config.num_train_steps} steps: {p.stage_hours:.1f} hours, "
            f"{p.stage_hours * topology.chips:.0f} chip-hours",
        ]
    return lines


def plan_to_dict(plan: Plan, topology: Topology) -> dict[str, Any]:
    """Returns the plan as a JSON-serialisable dictionary."""

    def program_to_dict(program: CompiledProgram) -> dict[str, Any]:
        values = dataclasses.asdict(program)
        del values["hlo_text"]
        return values

    projection_values = plan.projection and dataclasses.asdict(plan.projection)
    if projection_values:
        projection_values["step_seconds"] = plan.projection.step_seconds
    return {
        "config": to_dict(plan.config),
        "topology": {"name": topology.name, "slices": topology.slices, "chips": topology.chips, "grid": topology.grid},
        "mesh": plan.mesh,
        "fits": plan.fits,
        "hbm": topology.chip.hbm_bytes,
        "programs": [program_to_dict(program) for program in (plan.train, *plan.decoding)],
        "flops": dataclasses.asdict(plan.flops),
        "projection": projection_values,
        "assumptions": projection.__doc__,
        "compiler": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


def _make_and_log_plan(config: RunConfig, topology: Topology, placement: str | None, log: Callable[[str], Any]) -> Plan:
    """Makes a plan and logs one line about it."""
    plan = make_plan(config, topology, placement)
    data, seconds = plan.config.data, plan.train.compile_seconds
    log(
        f"{placement or plan.mesh}, {data.rows} rows, {data.clips} clips, remat {plan.config.remat_policy}: "
        f"{plan.train.needed / GB:.1f} GB on a chip, {'fits' if plan.fits else 'does not fit'} "
        f"({f'compiled in {seconds:.0f} s' if seconds else 'inputs alone, not compiled'})"
    )
    return plan
