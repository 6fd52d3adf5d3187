"""Scores and failure counts as plain text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from salmonn_jax.evaluation.scoring.failures import FailureCounts
from salmonn_jax.evaluation.scoring.published import PublishedValue, published_values
from salmonn_jax.evaluation.scoring.rows import Score, ScoreRow

FORMAT_VERSION = 1  # of scores.json


def format_table(rows: Sequence[ScoreRow]) -> str:
    """Formats the rows as a plain-text table with values and, in brackets, their 95 % intervals.

    Below the table there is a line for each note, such as why a metric is not computed.
    """
    has_parts, has_unscorable = any(row.part for row in rows), any(map(_num_unscorable, rows))
    cells = [("task", "metric", "split", *["part"] * has_parts, "clips", *["unscorable"] * has_unscorable)]
    cells[0] += ("audio", "silence")
    for row in rows:
        cells.append(
            (
                *(row.task, row.metric, row.split, *[row.part] * has_parts, format_clip_count(row)),
                *[str(_num_unscorable(row))] * has_unscorable,
                *(format_score(row.audio, row.unit), format_score(row.silence, row.unit)),
            )
        )
    notes = format_notes(rows)
    return "\n".join([format_cells(cells), *([""] if notes else []), *notes])


def format_failures(failures: Sequence[FailureCounts]) -> str:
    """Formats the failure counts as a plain-text table; tasks without a failure have no line. "" without lines."""
    counted = ("errors", "empty", "cut", "loops", "unparseable")
    names = ("task", "split", "part", "condition", "clips", *counted)
    lines = [f for f in failures if any(getattr(f, name) for name in counted)]
    return format_cells([names, *(tuple(str(getattr(f, n)) for n in names) for f in lines)]) if lines else ""


def format_protocols(rows: Sequence[ScoreRow]) -> str:
    """Formats one line for each task with its protocol and the settings of its metrics."""
    lines = {}
    for row in rows:
        settings = ", ".join(f"{name} {value}" for name, value in row.settings.items())
        lines[f"{row.task} {row.metric}: {row.protocol}" + (f" ({settings})" if settings else "")] = None
    return "\n".join(lines)


def format_published(rows: Sequence[ScoreRow]) -> str:
    """Formats the published values of the tasks of some rows, each with its source. "" if there is none."""
    return "\n".join(
        f"{value.task} {value.metric}: {_format_published(value)} on {value.test_set}, "
        f"{value.model} ({value.source}; protocol: {value.protocol})"
        for value in published_values({row.task for row in rows})
    )


def to_json(
    rows: Sequence[ScoreRow], failures: Sequence[FailureCounts] = (), *, exclude_errors: bool = False, **parts: object
) -> str:
    """Serialises the scores as a JSON object.

    Args:
      rows: scores; "rows" in the object, each with the fields of `ScoreRow`. Fractions are not in per cent.
      failures: failure counts; "failures" in the object.
      exclude_errors: whether errors are excluded; "errors" in the object is "excluded" or "wrong".
      **parts: further parts of the object, such as the comparison with another run.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "errors": "excluded" if exclude_errors else "wrong",
        "rows": [dataclasses.asdict(row) for row in rows],
        "failures": [dataclasses.asdict(counts) for counts in failures],
        "published": [dataclasses.asdict(value) for value in published_values({row.task for row in rows})],
        **parts,
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)


def format_clip_count(row: ScoreRow) -> str:
    """Formats the number of clips of a row, as "12", or as "12 / 8" if the two conditions have different numbers."""
    counts = dict.fromkeys(str(score.count) for score in (row.audio, row.silence) if score)
    return " / ".join(counts)


def format_value(value: float, unit: str) -> str:
    """Formats a value with one decimal: a fraction in per cent, as "12.3 %", or a number of points, as "34.4"."""
    return f"{100 * value:.1f} %" if unit == "percent" else _format_points(value)


def format_interval(score: Score, unit: str) -> str:
    """Formats the 95 % interval, as "10.1 to 14.5". "" if there is none."""
    if score.low is None or score.high is None:
        return ""
    if unit == "percent":
        return f"{100 * score.low:.1f} to {100 * score.high:.1f}"
    return f"{_format_points(score.low)} to {_format_points(score.high)}"


def format_score(score: Score | None, unit: str) -> str:
    """Formats a value with its interval, as "12.3 % [10.1 to 14.5]"; "-" if there is none."""
    if score is None:
        return "-"
    if score.value is None:
        return "not computed"
    interval = format_interval(score, unit)
    return format_value(score.value, unit) + (f" [{interval}]" if interval else "")


def format_cells(cells: Sequence[Sequence[str]]) -> str:
    """Formats a table whose first line is its header; columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def format_notes(rows: Sequence[ScoreRow]) -> list[str]:
    """Returns a line for each note of the rows. Conditions with the same note share it."""
    lines = {
        f"{row.task} {row.metric} ({' '.join(filter(None, (row.split, row.part)))}): {note}": None
        for row in rows
        for score in (row.audio, row.silence)
        if score
        for note in score.notes
    }
    return list(lines)


def _format_points(value: float) -> str:
    """Formats a number with one decimal, or with three if it is below 10, as CIDEr is."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _format_published(value: PublishedValue) -> str:
    return f"{value.value:.1f} %" if value.unit == "percent" else f"{value.value:g}"


def _num_unscorable(row: ScoreRow) -> int:
    return max((score.unscorable for score in (row.audio, row.silence) if score), default=0)
