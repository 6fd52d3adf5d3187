"""Does a job fit, before it is paid for: python -m launch.plan CONFIG --topology v5p-128 [field=value ...]

Compiles the training step and the two programs of decoding with the TPU compiler for that slice, on this machine,
which needs no TPU (`pip install 'salmonn-jax[tpu]'`; some minutes for the big models). Prints what a chip must hold,
what goes between chips, and a projection of the time: projected, not measured. Exit code 1: it does not fit.
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
    parser = argparse.ArgumentParser(
        prog="python -m launch.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, such as salmonn_13b_stage2")
    parser.add_argument("--topology", required=True, help="slice, such as v5p-128, v5e-16 or v6e-64")
    parser.add_argument("--chips", type=int, help="with a generation as --topology (v5p): so many chips in all")
    parser.add_argument("--slices", type=int, default=1, help="how many of them (default: %(default)s)")
    parser.add_argument(
        "--placement",
        choices=(*PLACEMENTS, "auto"),
        help="of the frozen weights; auto: the first of these that fits. Default: the configuration's mesh",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="also try numbers of rows and clips, and remat; propose what is projected fastest",
    )
    parser.add_argument("--train-only", action="store_true", help="leave the programs of decoding out")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="write all of it as JSON")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    arguments = parser.parse_intermixed_args()
    config = resolve_config(arguments.config, arguments.overrides)
    # Shapes need no device; and looking for a TPU here would take its time.
    os.environ["JAX_PLATFORMS"] = "cpu"
    cli.exit_immediately(run(config, arguments))


def run(config: Any, arguments: argparse.Namespace) -> int:
    """Plans, prints, writes. Returns the exit code."""
    from salmonn_jax import planning, topologies

    if arguments.chips is None:
        topology = topologies.get_topology(arguments.topology, arguments.slices)
    else:
        topology = topologies.get_topology_by_chips(arguments.topology, arguments.chips, arguments.slices)
    placements = PLACEMENTS if arguments.placement == "auto" else (arguments.placement,)
    if arguments.search:
        plans = planning.search(
            config, topology, PLACEMENTS if arguments.placement is None else placements, log_progress
        )
    else:
        plans = planning.try_placements(config, topology, placements, log_progress)
    best = plans[-1]
    if best.train.temporary is not None and not arguments.train_only:
        best = planning.with_decoding(best, topology)
    print("\n".join(planning.report_lines(best, topology)))
    if arguments.output:
        described = {
            "tried": [planning.plan_to_dict(plan, topology) for plan in plans],
            "plan": planning.plan_to_dict(best, topology),
        }
        arguments.output.write_text(json.dumps(described, indent=1) + "\n")
        print(f"wrote {arguments.output}")
    return 0 if best.fits else 1


def log_progress(line: str) -> None:
    """Compiling takes minutes: what is going on."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
