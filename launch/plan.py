"""Check whether a job fits on a TPU slice: python -m launch.plan CONFIG --topology v5p-128 [field=value ...]

Compiles the train step, and the prefill and decode step of an evaluation, for the slice with the TPU compiler. This
machine needs no TPU, only `pip install 'salmonn-jax[tpu]'`. The compilation takes minutes for large models. Prints the
memory of a chip by kind, the collectives, and a projection of the step time, which is not a measurement. Exits with 1
if the job does not fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
from typing import TYPE_CHECKING

from launch import cli
from launch.presets import require_model, resolve_preset

if TYPE_CHECKING:
    import jax

    from salmonn_jax.configs.preset import Preset
    from salmonn_jax.planning.aot import CompiledProgram
    from salmonn_jax.planning.planner import Plan, Trial
    from salmonn_jax.planning.topologies import Topology

PLACEMENTS = ("replicate", "tensor", "fsdp")


def main() -> None:
    """Parses the command line, prints the plan and exits."""
    parser = cli.make_parser("plan", __doc__)
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, such as salmonn_13b_stage2")
    parser.add_argument("--model", type=cli.path, help="model or run directory (default: the configuration's model)")
    parser.add_argument("--topology", required=True, help="slice, such as v5p-128, v5e-16 or v6e-64")
    parser.add_argument(
        "--chips", type=cli.positive_int, help="total number of chips, if --topology is a generation such as v5p"
    )
    parser.add_argument("--slices", type=cli.positive_int, default=1, help="number of slices (default: %(default)s)")
    parser.add_argument(
        "--placement",
        choices=(*PLACEMENTS, "auto"),
        help="placement of the frozen weights; auto: the first that fits (default: the configuration's mesh)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="also search batch size and remat policy for the highest projected speed",
    )
    programs = parser.add_mutually_exclusive_group()
    programs.add_argument("--train-only", action="store_true", help="do not compile the decoding programs")
    programs.add_argument("--decoding-only", action="store_true", help="do not compile the train step")
    parser.add_argument("--output", type=cli.output_path, metavar="FILE", help="JSON file for all plans")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    arguments = parser.parse_intermixed_args()
    if arguments.search and arguments.decoding_only:
        parser.error("--search looks for a training batch; leave out --decoding-only")
    preset = require_model(resolve_preset(arguments.config, arguments.overrides, arguments.model))
    # Shapes need no device, and a search for a TPU would take time.
    os.environ["JAX_PLATFORMS"] = "cpu"
    cli.exit_immediately(run(preset, arguments))


def run(preset: Preset, arguments: argparse.Namespace) -> int:
    """Makes, prints and writes the plan. Returns the exit code."""
    from salmonn_jax.files import atomic_write
    from salmonn_jax.planning import planner, topologies

    if arguments.chips is None:
        topology = topologies.get_topology(arguments.topology, arguments.slices)
    else:
        topology = topologies.get_topology_by_chips(arguments.topology, arguments.chips, arguments.slices)
    recipe = preset.recipe
    placements = PLACEMENTS if arguments.placement == "auto" else (arguments.placement,)
    if arguments.search and arguments.placement is None:
        placements = PLACEMENTS
    trials = [
        planner.Trial(
            recipe.mesh if placement is None else planner.mesh_sizes(placement, topology),
            recipe.data.rows,
            recipe.data.clips,
            recipe.data.streams,
            recipe.remat_policy,
            recipe.gradient_accumulation_steps,
        )
        for placement in placements
    ]
    make_plan = functools.partial(decoding_plan if arguments.decoding_only else compile_plan, preset, topology)
    if arguments.search:
        plans = planner.search(make_plan, trials, topology, log_progress)
    else:
        plans = planner.try_meshes(make_plan, trials, log_progress)
    plan = plans[-1]
    if plan.train is not None and plan.train.temporary is not None and not arguments.train_only:
        plan = planner.with_decoding(plan, compile_decoding(preset, topology, plan.trial), topology)
    print("\n".join(planner.report_lines(plan, topology)))
    if arguments.output:
        output = {
            "tried": [planner.plan_to_dict(tried, topology) for tried in plans],
            "plan": planner.plan_to_dict(plan, topology),
        }
        with atomic_write(arguments.output) as unfinished:
            unfinished.write_text(json.dumps(output, indent=1) + "\n")
        print(f"wrote {arguments.output}")
    return 0 if plan.fits else 1


def compile_plan(preset: Preset, topology: Topology, trial: Trial) -> Plan:
    """Compiles the train step of a preset, with the choices of a trial, and projects its speed.

    Raises:
      UserError: the compiler is missing or failed, or the batch cannot be split over the mesh.
    """
    from salmonn_jax import config, sharding
    from salmonn_jax.planning import accounting, aot, planner, projection

    rows, clips, streams = trial.rows, trial.clips, trial.streams
    data = preset.recipe.data
    data = dataclasses.replace(
        data, rows=rows, clips=clips, streams=streams, lookahead=max(data.lookahead, max(rows, clips) // streams)
    )
    recipe = dataclasses.replace(preset.recipe, data=data, mesh=trial.mesh, remat_policy=trial.remat_policy)
    mesh = sharding.make_mesh(trial.mesh, aot.devices(topology))
    hbm_limit = (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes
    train = compile_train_step(dataclasses.replace(preset, recipe=recipe), mesh, hbm_limit)
    flops = accounting.step_flops(
        preset.model,
        data,
        remat_policy=trial.remat_policy,
        gradient_accumulation_steps=trial.gradient_accumulation_steps,
        tensor_shards=trial.mesh.get("tensor", 1),
        num_devices=topology.chips,
    )
    projected = None
    if train.temporary is not None:
        projected = projection.project(
            train,
            flops,
            topology,
            clips=clips,
            num_train_steps=recipe.num_train_steps,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        )
    return planner.Plan(
        name=preset.name,
        config={"name": preset.name, "model": config.to_dict(preset.model), "recipe": config.to_dict(recipe)},
        trial=trial,
        row_tokens=f"{'at most ' if data.buckets else ''}{data.seq_len}",
        num_train_steps=recipe.num_train_steps,
        mesh=dict(mesh.shape),
        train=train,
        flops=flops,
        projection=projected,
        fits=projection.fits(train, topology),
    )


def compile_train_step(preset: Preset, mesh: jax.sharding.Mesh, hbm_limit: float = math.inf) -> CompiledProgram:
    """Compiles the train step of a preset for a mesh. `hbm_limit` is explained in `aot.compile_train_step`."""
    import jax

    from salmonn_jax import sharding
    from salmonn_jax.batch import NO_FRAMES
    from salmonn_jax.models import parameters
    from salmonn_jax.planning import aot
    from salmonn_jax.training.encoder_frames import stored_frames_shape
    from salmonn_jax.training.step import init_train_state, make_train_step

    recipe = preset.recipe
    structure, frames_shape = parameters.model_structure(preset.model, recipe.activation_dtype), NO_FRAMES
    if recipe.data.encoder_cache:
        parameters.check_frozen_encoders(structure, recipe.trainable)
        structure, frames_shape = structure.without(structure.encoder_paths), stored_frames_shape(preset.model, recipe)
    weights = aot.abstract_weights(structure, recipe.trainable, recipe.frozen_dtype, mesh)
    replicated = sharding.replicated(mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        jax.eval_shape(functools.partial(init_train_state, recipe), weights.trained),
    )
    sharding.check_batch(recipe.data, mesh, recipe.gradient_accumulation_steps)
    batch = aot.abstract_batch(preset.model, recipe.data, mesh, frames_shape)
    return aot.compile_train_step(make_train_step(recipe, structure, mesh), state, weights.frozen, batch, hbm_limit)


def decoding_plan(preset: Preset, topology: Topology, trial: Trial) -> Plan:
    """Compiles the decoding programs of a preset without its train step, with the mesh of a trial."""
    from salmonn_jax import config, sharding
    from salmonn_jax.planning import aot, planner

    mesh = sharding.make_mesh(trial.mesh, aot.devices(topology))
    plan = planner.Plan(
        name=preset.name,
        config={"name": preset.name, "model": config.to_dict(preset.model), "recipe": config.to_dict(preset.recipe)},
        trial=trial,
        row_tokens=str(preset.recipe.data.seq_len),
        num_train_steps=preset.recipe.num_train_steps,
        mesh=dict(mesh.shape),
        train=None,
        flops=None,
        projection=None,
        fits=True,
    )
    return planner.with_decoding(plan, compile_decoding(preset, topology, trial), topology)


def compile_decoding(preset: Preset, topology: Topology, trial: Trial) -> tuple[CompiledProgram, ...]:
    """Compiles the decoding programs of a preset, for as many prompts as fit.

    The first number of prompts is an estimate. It is halved until both programs fit, or each data shard has one prompt.
    """
    from salmonn_jax import sharding
    from salmonn_jax.models import parameters
    from salmonn_jax.planning import aot, projection

    mesh, recipe = sharding.make_mesh(trial.mesh, aot.devices(topology)), preset.recipe
    structure = parameters.model_structure(preset.model, recipe.activation_dtype)
    weights = aot.abstract_weights(structure, recipe.trainable, recipe.frozen_dtype, mesh)
    rows = aot.decoding_rows(structure, weights, mesh, (1 - projection.HBM_HEADROOM) * topology.chip.hbm_bytes)
    while True:
        log_progress(f"decoding: compiling for {rows} prompts")
        programs = aot.compile_decoding(structure, weights, rows, mesh)
        if all(projection.fits(program, topology) for program in programs) or rows <= sharding.num_data_shards(mesh):
            return programs
        rows //= 2


def log_progress(line: str) -> None:
    """Prints one line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
