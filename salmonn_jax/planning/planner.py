"""Choice of mesh, batch size and remat policy for a training job on a slice, and its cost. Used by `launch.plan`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any

from salmonn_jax.errors import UserError
from salmonn_jax.planning import aot, projection
from salmonn_jax.planning.accounting import StepFlops
from salmonn_jax.planning.aot import CompiledProgram
from salmonn_jax.planning.projection import Projection
from salmonn_jax.planning.topologies import Topology

GB = 1e9
MAX_BATCH_MULTIPLE = 64  # in a search, largest multiple of the smallest batch


@dataclasses.dataclass(frozen=True)
class Trial:
    """Choices that a plan is compiled for and that a search varies.

    Attributes:
      mesh: size of each mesh axis.
      rows: rows of a global batch.
      clips: audio slots of a global batch.
      streams: data streams.
      remat_policy: name in `salmonn_jax.models.common.REMAT_POLICIES`.
      gradient_accumulation_steps: micro-batches of a step.
    """

    mesh: dict[str, int]
    rows: int
    clips: int
    streams: int
    remat_policy: str
    gradient_accumulation_steps: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training run compiled for a slice.

    Attributes:
      name: name of the run.
      config: model and recipe with the choices of `trial`, as JSON values, for the record.
      trial: mesh, batch size and remat policy.
      row_tokens: tokens of the longest row, such as "512" or "at most 512".
      num_train_steps: steps of the run.
      mesh: size of each mesh axis, those of size 1 included.
      train: the compiled train step; None if only decoding was planned.
      flops: FLOPs of a train step on all chips; None if only decoding was planned.
      projection: projected speed; None if the train step does not fit.
      fits: whether all programs leave `projection.HBM_HEADROOM` of a chip's memory free.
      decoding: the compiled decoding programs, if `with_decoding` added them.
    """

    name: str
    config: dict[str, Any]
    trial: Trial
    row_tokens: str
    num_train_steps: int
    mesh: dict[str, int]
    train: CompiledProgram | None
    flops: StepFlops | None
    projection: Projection | None
    fits: bool
    decoding: tuple[CompiledProgram, ...] = ()

    @property
    def programs(self) -> tuple[CompiledProgram, ...]:
        """All compiled programs."""
        return (() if self.train is None else (self.train,)) + self.decoding


MakePlan = Callable[[Trial], Plan]  # compiles a trial; raises UserError if its batch cannot be split over its mesh


def with_decoding(plan: Plan, programs: tuple[CompiledProgram, ...], topology: Topology) -> Plan:
    """Returns the plan with compiled decoding programs. It fits only if they fit too."""
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


def try_meshes(make_plan: MakePlan, trials: Sequence[Trial], log: Callable[[str], Any]) -> list[Plan]:
    """Compiles trials in order until one fits.

    Args:
      make_plan: compiles a trial.
      trials: the trials, which differ in their mesh.
      log: called with one line per plan.

    Returns:
      All plans. The last one is the result.
    """
    plans = []
    for trial in trials:
        plans.append(_make_and_log_plan(make_plan, trial, log))
        if plans[-1].fits:
            break
    return plans


def search(make_plan: MakePlan, trials: Sequence[Trial], topology: Topology, log: Callable[[str], Any]) -> list[Plan]:
    """Searches the largest batch that fits, for each mesh and remat policy.

    Each candidate batch has the ratio of rows to clips of its trial. Its size is the smallest possible batch times a
    power of two. Memory is linear in this multiple, so plans with multiples 1 and 4 give an estimate of the largest
    one. The remat policies "full", "dots" and "none" need increasing memory, so the search with each starts at the
    largest multiple that fits with the policy before. Compiler failures are logged and skipped.

    Args:
      make_plan: compiles a trial.
      trials: the trials, which differ in their mesh.
      topology: the slices.
      log: called with one line per plan.

    Returns:
      All plans. The last one has the highest projected speed of those that fit.

    Raises:
      UserError: the compiler failed on every plan.
    """
    plans = []
    for trial in trials:
        # Each data shard has at least one stream in every micro-batch.
        parts = topology.chips // trial.mesh.get("tensor", 1) * trial.gradient_accumulation_steps
        gcd = math.gcd(trial.rows, trial.clips)

        @functools.cache
        def try_batch(remat: str, multiple: int, trial: Trial = trial, parts: int = parts, gcd: int = gcd):
            """Returns the plan for `multiple` times the smallest batch; None if it does not fit or does not compile."""
            rows, clips = (multiple * parts * n // gcd for n in (trial.rows, trial.clips))
            trial = dataclasses.replace(trial, rows=rows, clips=clips, streams=parts, remat_policy=remat)
            try:
                plans.append(_make_and_log_plan(make_plan, trial, log))
            except aot.CompilationError as error:
                log(f"{_describe(trial)}: {error}")
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
    trial, hbm = plan.trial, topology.chip.hbm_bytes
    heads = ("frozen", "trained", "optim.", "batch", "temp.", "needed")
    lines = [
        f"{plan.name} on {topology.slices} x {topology.name} ({topology.chips} chips, {topology.hosts} hosts)",
        f"mesh {plan.mesh}",
    ]
    if plan.train is not None:
        lines.append(
            f"training: remat {trial.remat_policy}; a step has {trial.clips} clips and {trial.rows} rows of "
            f"{plan.row_tokens} tokens"
        )
    if plan.decoding:
        settings = aot.GENERATION
        lines.append(
            f"decoding: {plan.decoding[0].rows} prompts of {aot.PROMPT_TOKENS} tokens with one clip each, "
            f"{settings.num_beams} beams, at most {settings.max_new_tokens} new tokens"
        )
    lines += [
        "",
        " ".join([f"{'GB on a chip':14}", *(f"{head:>8}" for head in heads), f"of {hbm / GB:.1f}"]),
    ]
    for program in plan.programs:
        input_bytes = (program.frozen, program.trained, program.optimizer, program.batch)
        temporary = f"{program.temporary / GB:8.2f}" if program.temporary is not None else f"{'-':>8}"
        verdict = (
            "fits"
            if projection.fits(program, topology)
            else f"DOES NOT FIT with {projection.HBM_HEADROOM:.0%} of the memory free"
        )
        cells = " ".join(f"{x / GB:8.2f}" for x in input_bytes)
        lines.append(f"{program.name:14} {cells} {temporary} {program.needed / GB:8.2f} {verdict}")
    for program in plan.programs:
        if program.name != "prefill":
            lines += ["", f"collectives of a {program.name} (MB per chip x number of executions):"]
            for collective in program.collectives:
                size = f"{collective.bytes / 1e6:10.3f} MB x {collective.times:<4}"
                lines.append(f"  {collective.kind:18} {size} {collective.source[-70:]}")
    if plan.flops is not None:
        flops_text = ", ".join(f"{name} {value / 1e12:.1f}" for name, value in plan.flops.by_component.items())
        lines += ["", f"TFLOP of a train step on all chips: {flops_text}"]
    if plan.projection is not None:
        p = plan.projection
        lines += [
            "",
            f"PROJECTED, not measured (matrix products at {projection.MATMUL_EFFICIENCY:.0%} of peak; assumptions in "
            "salmonn_jax/planning/projection.py):",
            f"  step {p.step_seconds:.3f} s = max(products {p.products_seconds:.3f}, memory {p.memory_seconds:.3f}) + "
            f"collectives {p.collective_seconds:.3f}; MFU {p.mfu:.0%}; {p.clips_per_second:.0f} clips/s",
            f"  {plan.num_train_steps} steps: {p.stage_hours:.1f} hours, "
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
        "config": plan.config,
        "topology": {"name": topology.name, "slices": topology.slices, "chips": topology.chips, "grid": topology.grid},
        "mesh": plan.mesh,
        "fits": plan.fits,
        "hbm": topology.chip.hbm_bytes,
        "programs": [program_to_dict(program) for program in plan.programs],
        "flops": plan.flops and plan.flops.by_component,
        "projection": projection_values,
        "assumptions": projection.__doc__,
        "compiler": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


def _make_and_log_plan(make_plan: MakePlan, trial: Trial, log: Callable[[str], Any]) -> Plan:
    """Compiles a trial and logs one line about it."""
    plan = make_plan(trial)
    if plan.train is None:
        return plan
    seconds = plan.train.compile_seconds
    log(
        f"{_describe(trial)}: {plan.train.needed / GB:.1f} GB on a chip, {'fits' if plan.fits else 'does not fit'} "
        f"({f'compiled in {seconds:.0f} s' if seconds else 'inputs alone, not compiled'})"
    )
    return plan


def _describe(trial: Trial) -> str:
    """Returns the trial as text for the log."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in trial.mesh.items()) or "replicated"
    return f"{mesh}, {trial.rows} rows, {trial.clips} clips, remat {trial.remat_policy}"
