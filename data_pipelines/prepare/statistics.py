"""What is in a data set, by task: hours, lengths of clips and of answers. Whole numbers, whose sums are exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from salmonn_jax.config import SAMPLE_RATE


@dataclasses.dataclass
class ValueStatistics:
    """How many values there were, their sum, the least and the greatest."""

    count: int = 0
    total: int = 0
    minimum: int = 0
    maximum: int = 0

    def merge(self, other: ValueStatistics) -> None:
        """Adds the values of another."""
        if other.count:
            self.minimum = min(self.minimum, other.minimum) if self.count else other.minimum
            self.maximum = max(self.maximum, other.maximum)
            self.count += other.count
            self.total += other.total

    def summary(self, unit: int = 1) -> dict[str, float]:
        """For people, in units of so many."""
        values = {"min": self.minimum, "mean": self.total / max(self.count, 1), "max": self.maximum}
        return {name: round(value / unit, 2) for name, value in values.items()}


class Statistics:
    """Spreads of what is measured of examples: "samples" of their clips, "characters" and "tokens" of their answers."""

    def __init__(self):
        self._tasks: dict[str, dict[str, ValueStatistics]] = {}

    def add(self, task: str, **values: int) -> None:
        """Counts one example."""
        self.merge({task: {name: (1, value, value, value) for name, value in values.items()}})

    def merge(self, tasks: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
        """Adds what `to_json` of another gave."""
        for task, measures in tasks.items():
            mine = self._tasks.setdefault(task, {})
            for name, spread in measures.items():
                mine.setdefault(name, ValueStatistics()).merge(ValueStatistics(*spread))

    def to_json(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The spreads of each task, as numbers."""
        return {
            task: {name: dataclasses.astuple(spread) for name, spread in measures.items()}
            for task, measures in sorted(self._tasks.items())
        }

    def summary(self) -> dict[str, dict[str, Any]]:
        """For people: examples, clips, hours, seconds of clips, characters and tokens of answers, of each task."""
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
    """What `Statistics.summary` gave, in columns."""
    tokens = any("tokens" in row for row in rows.values())
    head = f"{'task':<24} {'examples':>9} {'hours':>9} {'seconds min/mean/max':>21} {'answer characters':>18}"
    lines = [head + (f" {'tokens':>14}" if tokens else "")]
    for task, row in rows.items():
        seconds = "/".join(f"{row['seconds'][name]:.1f}" for name in ("min", "mean", "max")) if row["clips"] else ""
        hours = f"{row['hours']:.2f}" if row["clips"] else "text"
        line = f"{task:<24} {row['examples']:>9} {hours:>9} {seconds:>21} {_brief(row['characters']):>18}"
        lines.append(line + (f" {_brief(row['tokens']):>14}" if tokens else ""))
    return "\n".join(lines)


def _brief(lengths: Mapping[str, float]) -> str:
    return f"{lengths['min']:g}/{lengths['mean']:.1f}/{lengths['max']:g}"
