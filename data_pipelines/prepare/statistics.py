"""Statistics of a prepared split by task: hours, lengths of clips and of answers.

The values are integers, so merging them gives the same result in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from salmonn_jax.config import SAMPLE_RATE


@dataclasses.dataclass
class ValueStatistics:
    """Count, sum, minimum and maximum of integer values."""

    count: int = 0
    total: int = 0
    minimum: int = 0
    maximum: int = 0

    def merge(self, other: ValueStatistics) -> None:
        """Adds the values that `other` summarises."""
        if other.count:
            self.minimum = min(self.minimum, other.minimum) if self.count else other.minimum
            self.maximum = max(self.maximum, other.maximum)
            self.count += other.count
            self.total += other.total

    def summary(self, unit: int = 1) -> dict[str, float]:
        """Returns minimum, mean and maximum, divided by `unit` and rounded."""
        values = {"min": self.minimum, "mean": self.total / max(self.count, 1), "max": self.maximum}
        return {name: round(value / unit, 2) for name, value in values.items()}


class Statistics:
    """Statistics of the examples of each task.

    The measured values are the "samples" of clips and the "characters" and "tokens" of answers.
    """

    def __init__(self):
        self._tasks: dict[str, dict[str, ValueStatistics]] = {}

    def add(self, task: str, **values: int) -> None:
        """Adds the values of one example."""
        self.merge({task: {name: (1, value, value, value) for name, value in values.items()}})

    def merge(self, tasks: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
        """Adds statistics in the form of `to_json`."""
        for task, measures in tasks.items():
            task_statistics = self._tasks.setdefault(task, {})
            for name, values in measures.items():
                task_statistics.setdefault(name, ValueStatistics()).merge(ValueStatistics(*values))

    def to_json(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Returns count, sum, minimum and maximum of each value of each task."""
        return {
            task: {name: dataclasses.astuple(values) for name, values in measures.items()}
            for task, measures in sorted(self._tasks.items())
        }

    def summary(self) -> dict[str, dict[str, Any]]:
        """Returns readable statistics of each task: examples, clips, hours, seconds of clips, lengths of answers."""
        rows = {}
        for task, measures in sorted(self._tasks.items()):
            clips = measures.get("samples", ValueStatistics())
            rows[task] = {
                "examples": measures["characters"].count,
                "clips": clips.count,
                "hours": round(clips.total / SAMPLE_RATE / 3600, 4),
                "seconds": clips.summary(SAMPLE_RATE),
                **{name: measures[name].summary() for name in ("characters", "tokens") if name in measures},
            }
        return rows


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the result of `Statistics.summary` as a table."""
    tokens = any("tokens" in row for row in rows.values())
    head = f"{'task':<24} {'examples':>9} {'hours':>9} {'seconds min/mean/max':>21} {'answer characters':>18}"
    lines = [head + (f" {'tokens':>14}" if tokens else "")]
    for task, row in rows.items():
        seconds = "/".join(f"{row['seconds'][name]:.1f}" for name in ("min", "mean", "max")) if row["clips"] else ""
        hours = f"{row['hours']:.2f}" if row["clips"] else "text"
        line = f"{task:<24} {row['examples']:>9} {hours:>9} {seconds:>21} {_format_lengths(row['characters']):>18}"
        lines.append(line + (f" {_format_lengths(row['tokens']):>14}" if tokens else ""))
    return "\n".join(lines)


def _format_lengths(lengths: Mapping[str, float]) -> str:
    return f"{lengths['min']:g}/{lengths['mean']:.1f}/{lengths['max']:g}"
