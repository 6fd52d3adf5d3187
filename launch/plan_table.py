"""Recompile the plans in launch/plans.json and print the tables of docs/plans.md: python -m launch.plan_table

`launch/plans.json` lists commands of `launch.plan` with their results. This command runs them again, each in its own
process, replaces the results in the file, and prints the tables in Markdown. Copy the tables to docs/plans.md. A plan
takes minutes for large models.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from launch import cli

PLANS_FILE = pathlib.Path(__file__).with_name("plans.json")
GB, MB = 1e9, 1e6


def main() -> None:
    """Parses the command line, runs the plans and prints the tables."""
    parser = cli.make_parser("plan_table", __doc__)
    parser.add_argument(
        "--only", default="", metavar="PREFIX", help="run only commands with this prefix, such as debug"
    )
    parser.add_argument("--print", action="store_true", help="print the tables of the stored results; compile nothing")
    arguments = parser.parse_args()
    entries = json.loads(PLANS_FILE.read_text())
    for entry in entries:
        if not arguments.print and " ".join(entry["command"]).startswith(arguments.only):
            entry["plan"] = run_plan(entry["command"])
            PLANS_FILE.write_text(json.dumps(entries, indent=1) + "\n")
    tables = memory_table, evaluation_table, scaling_table
    print("\n\n".join("\n".join(table(entries)) for table in tables))


def run_plan(command: Sequence[str]) -> dict[str, Any]:
    """Returns the result of `launch.plan` with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "plan.json"
        argv = [sys.executable, "-m", "launch.plan", *command, "--output", str(output)]
        process = subprocess.run(argv, stdout=subprocess.DEVNULL, check=False)
        if not output.exists():
            raise OSError(f"launch.plan {' '.join(command)} failed with exit code {process.returncode}")
        return json.loads(output.read_text())["plan"]


def memory_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the Markdown table of memory and speed.

    It contains the training plans of the released models, except those that compile only the train step.
    """
    lines = [
        "| configuration, slice | chips | mesh | rows x tokens, clips | frozen | trained, optimiser | temporary "
        "| train step | memory of a chip | *projected:* step | MFU | clips/s | chip-hours of the stage |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        plan = entry["plan"]
        if not entry["command"][0].startswith("salmonn") or {"--train-only", "--decoding-only"} & set(entry["command"]):
            continue
        train = _program(plan, "train step")
        cells = [
            f"{plan['config']['name']}, {plan['topology']['name']}",
            plan["topology"]["chips"],
            _mesh(plan["mesh"]),
            "{rows} x {seq_len}, {clips}".format(**plan["config"]["recipe"]["data"]),
            f"{train['frozen'] / GB:.2f}",
            f"{(train['trained'] + train['optimizer']) / GB:.2f}",
            f"{train['temporary'] / GB:.2f}",
            f"{train['needed'] / GB:.1f}",
            f"{plan['hbm'] / GB:.1f} GB",
            *_projection_cells(plan),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def evaluation_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the Markdown table of the memory of evaluation.

    It contains the plans of the released models with decoding programs.
    """
    lines = [
        "| configuration, slice | chips | mesh | prompts | frozen | prompts and KV cache | prefill | decode step "
        "| memory of a chip | prefill, decode step compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in (entry["plan"] for entry in entries if entry["command"][0].startswith("salmonn")):
        prefill, step = (_program(plan, name) for name in ("prefill", "decode step"))
        if step is None:
            continue
        cells = [
            f"{plan['config']['name']}, {plan['topology']['name']}",
            plan["topology"]["chips"],
            _mesh(plan["mesh"]),
            step["rows"],
            f"{step['frozen'] / GB:.2f}",
            f"{step['batch'] / GB:.2f}",
            f"{prefill['needed'] / GB:.1f}",
            f"{step['needed'] / GB:.1f}",
            f"{plan['hbm'] / GB:.1f} GB",
            f"{prefill['compile_seconds']:.0f} s, {step['compile_seconds']:.0f} s",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def scaling_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the Markdown table of the cost by number of chips.

    It contains the plans that were compiled without decoding.
    """
    lines = [
        "| configuration, slice | chips | rows | lowered in | compiled in | inputs of a chip | batch of a chip "
        "| collective bytes per chip | *projected:* collectives | chip-hours per million clips |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    plans = [entry["plan"] for entry in entries if "--train-only" in entry["command"]]
    for plan in plans:
        train, chips, projection = plan["programs"][0], plan["topology"]["chips"], plan["projection"]
        inputs = sum(train[kind] for kind in ("frozen", "trained", "optimizer", "batch"))
        cells = [
            f"{plan['config']['name']}, {plan['topology']['name']}",
            chips,
            plan["config"]["recipe"]["data"]["rows"],
            f"{train['lower_seconds']:.0f} s",
            f"{train['compile_seconds']:.0f} s",
            f"{inputs / GB:.2f} GB",
            f"{train['batch'] / MB:.2f} MB",
            f"{sum(collective['bytes'] * collective['times'] for collective in train['collectives']) / MB:.1f} MB",
            f"{1000 * projection['collective_seconds']:.1f} ms",
            f"{chips * 1e6 / projection['clips_per_second'] / 3600:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines if plans else []


def _program(plan: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Returns the program of a plan with this name, or None."""
    return next((program for program in plan["programs"] if program["name"] == name), None)


def _projection_cells(plan: dict[str, Any]) -> list[str]:
    """Returns the table cells of a plan's projection."""
    projection, chips = plan["projection"], plan["topology"]["chips"]
    return [
        f"{projection['step_seconds']:.2f} s",
        f"{projection['mfu']:.0%}",
        f"{projection['clips_per_second']:.0f}",
        f"{projection['stage_hours'] * chips:.0f}",
    ]


def _mesh(sizes: dict[str, int]) -> str:
    """Returns the mesh axes larger than one as text."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)


if __name__ == "__main__":
    cli.run(main)
