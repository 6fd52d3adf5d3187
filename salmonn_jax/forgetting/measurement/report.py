"""The report of forgetting: JSON, Markdown and a self-contained HTML page, from the predictions of all stages."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from salmonn_jax.files import atomic_write
from salmonn_jax.forgetting.measurement.results import CellScore, Change, TaskResult, chain, stage_matrix, task_results
from salmonn_jax.forgetting.measurement.stages import SPEECH, TEXT, Column, ForgettingConfig
from salmonn_jax.paths import Path

MEASURES = {
    "average": "mean score over all tasks, higher is better",
    "backward_transfer": "mean change since each task was taught (Lopez-Paz and Ranzato 2017), higher is better",
    "forgetting": "mean drop from the best score since each task was taught (Chaudhry et al. 2018), lower is better",
    "forward_transfer": "mean gain on tasks before they are taught, above a guess, higher is better",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of all tasks, and measures over the tasks of each channel for every stage.

    Attributes:
      stages: names of the stages.
      tasks: results by task.
      measures: channel -> measure -> value of each stage; NaN for the first stage, before which nothing was learned.
    """

    stages: tuple[str, ...]
    tasks: tuple[TaskResult, ...]
    measures: Mapping[str, Mapping[str, tuple[float, ...]]]


def make_report(config: ForgettingConfig, columns: Sequence[Column]) -> Report:
    """Computes the report.

    Args:
      config: stages and tasks.
      columns: predictions by task.
    """
    results = task_results(config, columns)
    channels = {"all": results} | {
        channel: [result for result in results if result.channel == channel]
        for channel in sorted({result.channel for result in results})
    }
    measures = {}
    for channel, of_channel in channels.items():
        by_stage = [stage_matrix(config, of_channel, stage) for stage in range(len(config.stages))]
        measures[channel] = {
            name: tuple(
                getattr(matrix, name)() if len(chain(config, stage)) > 1 or name == "average" else math.nan
                for stage, matrix in enumerate(by_stage)
            )
            for name in MEASURES
        }
    return Report(tuple(stage.name for stage in config.stages), tuple(results), measures)


def write_report(report: Report, directory: Path) -> list[Path]:
    """Writes forgetting.json, forgetting.md and index.html, and returns their paths.

    Args:
      report: the report.
      directory: directory, which is made if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {"forgetting.json": to_json(report), "forgetting.md": to_markdown(report), "index.html": to_html(report)}
    for name, text in texts.items():
        with atomic_write(directory / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return [directory / name for name in texts]


def to_json(report: Report) -> str:
    """Returns the report as JSON; null is unknown."""
    return json.dumps(_without_nan(dataclasses.asdict(report)), indent=1) + "\n"


def to_markdown(report: Report) -> str:
    """Returns the tables of the report in Markdown."""
    lines = [
        "# Forgetting",
        "",
        "Scores are from 0 to 100 and better if higher; an error rate counts as 100 - rate.",
        "",
    ]
    lines += _markdown_table(
        ["task", "channel", "split", *report.stages],
        [
            [result.name, result.channel, result.split, *(format_score(x) for x in result.scores)]
            for result in report.tasks
        ],
    )
    lines += ["", f"## Change since {report.stages[0]}, on the same items", ""]
    lines += _markdown_table(
        ["task", "channel", "split", *report.stages[1:]],
        [
            [result.name, result.channel, result.split, *(format_change(x) for x in result.changes[1:])]
            for result in report.tasks
        ],
    )
    lines += ["", "## Measures", ""]
    lines += _markdown_table(
        ["measure", "tasks", *report.stages],
        [
            [name, channel, *(format_number(value) for value in values)]
            for channel, by_name in report.measures.items()
            for name, values in by_name.items()
        ],
    )
    return "\n".join([*lines, "", *(f"* {name}: {meaning}" for name, meaning in MEASURES.items()), ""])


def to_html(report: Report) -> str:
    """Returns the page: a heat map of the scores, what was retained, transitions, and the measures."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("forgetting.html").render(
        report=report,
        measures=MEASURES,
        format_score=format_score,
        format_change=format_change,
        format_number=format_number,
        points=trade_off(report),
        colour=_colour,
        zip=zip,
    )


def trade_off(report: Report) -> list[tuple[str, float, float]]:
    """Returns (stage, mean score on text, mean score on speech) of the stages that were measured on both channels."""
    if not {TEXT, SPEECH} <= set(report.measures):
        return []
    text, speech = (report.measures[channel]["average"] for channel in (TEXT, SPEECH))
    points = zip(report.stages, text, speech, strict=True)
    return [point for point in points if not (math.isnan(point[1]) or math.isnan(point[2]))]


def format_score(score: CellScore) -> str:
    """Returns a score in per cent with its interval."""
    if score.value is None:
        return "not measured"
    ends = "" if score.low is None or score.high is None else f" [{100 * score.low:.1f} to {100 * score.high:.1f}]"
    return f"{100 * score.value:.1f}{ends}"


def format_change(change: Change) -> str:
    """Returns a difference in points with its interval."""
    if change.difference is None:
        return "not measured"
    ends = (
        "" if change.low is None or change.high is None else f" [{100 * change.low:+.1f} to {100 * change.high:+.1f}]"
    )
    return f"{100 * change.difference:+.1f}{ends}"


def format_number(value: float | None) -> str:
    """Returns a share in per cent; "" if it is unknown."""
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _colour(value: float | None) -> str:
    """Returns the CSS colour of a score from 0 (red) to 1 (green)."""
    if value is None or math.isnan(value):
        return "transparent"
    return f"hsl({120 * max(0.0, min(1.0, value)):.0f} 60% 75%)"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _without_nan(value: Any) -> Any:
    """Returns JSON values with None in place of NaN."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
