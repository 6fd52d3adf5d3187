"""Measure what a model forgets, and decide whether it is adopted:

    python -m launch.forgetting report forgetting.yml --output DIR
    python -m launch.forgetting gate gate.yml
    python -m launch.forgetting sweep --model RUN --manifest test.jsonl --output DIR      # LoRA multipliers

Compares evaluations of several stages, item by item: text answered as text, speech answered as text. forgetting.yml
names the stages and the directories of `launch.evaluate`, which must be on the same rows:

    stages:
      - {name: base, evaluations: [EVAL_0]}        # the model before any training
      - {name: speech, evaluations: [EVAL_1]}
      - {name: speech with replay, after: base, evaluations: [EVAL_2]}
    tasks:                                          # optional
      - {task: text, chance: 0.25, choices: 4}
      - {task: numbers, taught: speech}

See docs/forgetting.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch import cli, sweep

if TYPE_CHECKING:
    from salmonn_jax.evaluation.predictions import Prediction
    from salmonn_jax.forgetting.measurement.stages import ForgettingConfig
    from salmonn_jax.paths import Path


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the command."""
    parser = cli.make_parser("forgetting", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="scores by stage, what changed, and measures of forgetting")
    report.add_argument("config", type=cli.path, metavar="forgetting.yml", help="stages and tasks")
    report.add_argument("--output", type=cli.output_path, required=True, metavar="DIR", help="directory of the report")
    gate = commands.add_parser("gate", help="pass, fail, or leave to a person; exit code 0, 2, 3, or 4 to roll back")
    gate.add_argument("config", type=cli.path, metavar="gate.yml", help="candidate and rules")
    sweep.add_parser(commands)
    arguments = parser.parse_args(words)
    if arguments.command == "report":
        write_report(arguments.config, arguments.output)
    elif arguments.command == "sweep":
        sweep.run(arguments)
    else:
        sys.exit(apply_gate(arguments.config))


def write_report(path: Path, output: Path) -> None:
    """Writes the report of the stages in forgetting.yml.

    Args:
      path: forgetting.yml.
      output: directory of the report.

    Raises:
      UserError: the file is wrong, or the stages cannot be compared.
    """
    from salmonn_jax.forgetting.measurement import report
    from salmonn_jax.forgetting.measurement.stages import make_columns, read_config

    config = read_config(path)
    predictions, _ = _read_stages(config, path.parent)
    made = report.make_report(config, make_columns(config, predictions))
    print(report.to_markdown(made))
    for file in report.write_report(made, output):
        print(f"report: {file}")


def apply_gate(path: Path) -> int:
    """Prints the verdict of gate.yml and its reasons, and returns the exit code.

    Args:
      path: gate.yml.

    Raises:
      UserError: the file is wrong, or the stages cannot be compared.
    """
    from salmonn_jax.forgetting.measurement.gate import check_gate, judge, read_gate
    from salmonn_jax.forgetting.measurement.stages import make_columns, read_config
    from salmonn_jax.paths import join

    gate = read_gate(path)
    stages = join(path.parent, gate.stages)
    config = read_config(stages)
    check_gate(gate, config)
    predictions, fingerprints = _read_stages(config, stages.parent)
    verdict, outcomes = judge(gate, config, make_columns(config, predictions), fingerprints)
    for outcome in outcomes:
        print(f"{outcome.verdict.name}: {outcome.reason}")
    advice = {
        "PASS": f"{gate.candidate} may be adopted",
        "FAIL": f"{gate.candidate} must not be adopted",
        "INCONCLUSIVE": "a person must decide; more items make the bounds narrower",
        "ROLLBACK": f"{gate.candidate} is in use and fails; return to the model before it",
    }
    print(f"{verdict.name}: {advice[verdict.name]}")
    return verdict.value


def _read_stages(config: ForgettingConfig, folder: Path) -> tuple[list[list[Prediction]], dict[str, list[str]]]:
    """Returns the predictions of each stage, and the fingerprints of the models they were made with.

    Raises:
      UserError: an evaluation is missing, or stages were decoded with other settings.
    """
    from launch.score import read_evaluation
    from salmonn_jax.evaluation.run_file import read_run
    from salmonn_jax.forgetting.measurement.stages import check_settings
    from salmonn_jax.paths import join

    predictions, fingerprints, settings = [], {}, {}
    for stage in config.stages:
        directories = [join(folder, name) for name in stage.evaluations]
        predictions.append([prediction for directory in directories for prediction in read_evaluation(directory)])
        runs = {directory: read_run(directory).get("settings", {}) for directory in directories}
        fingerprints[stage.name] = [run.get("model.fingerprint", "") for run in runs.values()]
        settings |= {str(directory): run for directory, run in runs.items() if run}
    check_settings(settings)
    return predictions, fingerprints


if __name__ == "__main__":
    cli.run(main)
