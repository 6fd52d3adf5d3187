"""Check whether a job fits on a TPU slice: python -m launch.plan CONFIG --topology v5p-128 [field=value ...]

Compiles the train step and both decoding programs for the slice with the TPU compiler. This machine needs no TPU, only
`pip install 'salmonn-jax[tpu]'`. The compilation takes minutes for large models. Prints the memory of a chip by kind,
the collectives, and a projection of the step time, which is not a measurement. Exits with 1 if the job does not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from typing import Any

from launch import cli
from launch.train import resolve_config

PLACEMENTS = ("replicate", "tensor", "fsdp")


def main() -> None:
    """Parses the command line, prints the plan and exits."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, such as salmonn_13b_stage2")
    parser.add_argument("--topology", required=True, help="slice, such as v5p-128, v5e-16 or v6e-64")
    parser.add_argument("--chips", type=int, help="total number of chips, if --topology is a generation such as v5p")
    parser.add_argument("--slices", type=int, default=1, help="number of slices (default: %(default)s)")
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
    parser.add_argument("--train-only", action="store_true", help="do not compile the decoding programs")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="JSON file for all plans")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    arguments = parser.parse_intermixed_args()
    config = resolve_config(arguments.config, arguments.overrides)
    # Shapes need no device, and a search for a TPU would take time.
    os.environ["JAX_PLATFORMS"] = "cpu"
    cli.exit_immediately(run(config, arguments))


def run(config: Any, arguments: argparse.Namespace) -> int:
    """Makes, prints and writes the plan. Returns the exit code."""
    from salmonn_jax.planning import planner, topologies

    if arguments.chips is None:
        topology = topologies.get_topology(arguments.topology, arguments.slices)
    else:
        topology = topologies.get_topology_by_chips(arguments.topology, arguments.chips, arguments.slices)
    placements = PLACEMENTS if arguments.placement == "auto" else (arguments.placement,)
    if arguments.search:
        search_placements = PLACEMENTS if arguments.placement is None else placements
        plans = planner.search(config, topology, search_placements, log_progress)
    else:
        plans = planner.try_placements(config, topology, placements, log_progress)
    plan = plans[-1]
    if plan.train.temporary is not None and not arguments.train_only:
        plan = planner.with_decoding(plan, topology)
    print("\n".join(planner.report_lines(plan, topology)))
    if arguments.output:
        output = {
            "tried": [planner.plan_to_dict(tried, topology) for tried in plans],
            "plan": planner.plan_to_dict(plan, topology),
        }
        arguments.output.write_text(json.dumps(output, indent=1) + "\n")
        print(f"wrote {arguments.output}")
    return 0 if plan.fits else 1


def log_progress(line: str) -> None:
    """Prints one line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
