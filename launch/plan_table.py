"""The README's tables of plans, made anew: python -m launch.plan_table [--only PREFIX]

`launch/plans.json` lists commands of `launch.plan` and what each gave. This runs them again, each in a process of its
own (some minutes each for the big models), writes what they give now, and prints both tables in Markdown.
"""

from __future__ import annotations

import argparse
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
    parser = argparse.ArgumentParser(
        prog="python -m launch.plan_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="PREFIX", help="only commands that begin so, such as debug")
    parser.add_argument("--print", action="store_true", help="print the tables of what is there; compile nothing")
    arguments = parser.parse_args()
    entries = json.loads(PLANS_FILE.read_text())
    for entry in entries:
        if not arguments.print and " ".join(entry["command"]).startswith(arguments.only):
            entry["plan"] = run_plan(entry["command"])
            PLANS_FILE.write_text(json.dumps(entries, indent=1) + "\n")
    print("\n".join([*memory_table(entries), "", *scaling_table(entries)]))


def run_plan(command: Sequence[str]) -> dict[str, Any]:
    """What `launch.plan` gives for these words."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "plan.json"
        words = [sys.executable, "-m", "launch.plan", *command, "--output", str(output)]
        done = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
        if not output.exists():
            raise OSError(f"launch.plan {' '.join(command)} ended with exit code {done.returncode}")
        return json.loads(output.read_text())["plan"]


def memory_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Bytes of a chip by kind, and the projection: Markdown lines, one a plan with decoding of a released model."""
    lines = [
        "| configuration, slice | chips | mesh | rows x tokens, clips | frozen | trained, optimiser | temporary "
        "| train step | prefill | decode step | of | *projected:* step | MFU | clips/s | chip-hours of the stage |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    released = [e["plan"] for e in entries if e["plan"] and e["command"][0].startswith("salmonn")]
    for plan in (plan for plan in released if len(plan["programs"]) > 1):
        train, *decoding = plan["programs"]
        cells = [
            f"{plan['config']['name']}, {plan['topology']['name']}",
            plan["topology"]["chips"],
            _mesh(plan["mesh"]),
            "{rows} x {seq_len}, {clips}".format(**plan["config"]["data"]),
            f"{train['frozen'] / GB:.2f}",
            f"{(train['trained'] + train['optimizer']) / GB:.2f}",
            f"{train['temporary'] / GB:.2f}",
            *(f"{program['needed'] / GB:.1f}" for program in (train, *decoding)),
            f"{plan['hbm'] / GB:.1f} GB",
            *_projected(plan),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def scaling_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """What grows with the number of chips: Markdown lines, one a plan of the train step alone."""
    lines = [
        "| configuration, slice | chips | rows | lowered in | compiled in | inputs of a chip | batch of a chip "
        "| handed to collectives by a chip | *projected:* collectives | chip-hours a million clips |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    plans = [entry["plan"] for entry in entries if entry["plan"] and len(entry["plan"]["programs"]) == 1]
    for plan in plans:
        train, chips, projected = plan["programs"][0], plan["topology"]["chips"], plan["projection"]
        inputs = sum(train[kind] for kind in ("frozen", "trained", "optimizer", "batch"))
        cells = [
            f"{plan['config']['name']}, {plan['topology']['name']}",
            chips,
            plan["config"]["data"]["rows"],
            f"{train['lower_seconds']:.0f} s",
            f"{train['compile_seconds']:.0f} s",
            f"{inputs / GB:.2f} GB",
            f"{train['batch'] / MB:.2f} MB",
            f"{sum(one['bytes'] * one['times'] for one in train['collectives']) / MB:.1f} MB",
            f"{1000 * projected['collective_seconds']:.1f} ms",
            f"{chips * 1e6 / projected['clips_per_second'] / 3600:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines if plans else []


def _projected(plan: dict[str, Any]) -> list[str]:
    projected, chips = plan["projection"], plan["topology"]["chips"]
    return [
        f"{projected['step_seconds']:.2f} s",
        f"{projected['mfu']:.0%}",
        f"{projected['clips_per_second']:.0f}",
        f"{projected['stage_hours'] * chips:.0f}",
    ]


def _mesh(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)


if __name__ == "__main__":
    cli.run(main)
