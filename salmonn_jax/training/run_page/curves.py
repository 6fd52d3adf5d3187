"""Curves of metrics, and their drawing as SVG coordinates for the template of the run page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from salmonn_jax.paths import Path
from salmonn_jax.training.metric_writer import METRICS_FILE

MAX_POINTS = 240  # longer curves show the means of stretches of equal length
WIDTH, HEIGHT = 460, 210  # of a chart, in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26  # margins around the curves


class Curve(NamedTuple):
    """Values of a metric. NaN marks a value that is not finite."""

    steps: np.ndarray  # int64[values], increasing
    values: np.ndarray  # float64[values]


class Line(NamedTuple):
    """A curve as it is drawn."""

    label: str
    index: int  # chooses the colour
    points: tuple[tuple[float, float], ...]  # pixels
    titles: tuple[str, ...]  # step and value of each point
    is_dotted: bool  # held-out values are drawn with their points


class Tick(NamedTuple):
    """A label of an axis."""

    position: float  # pixels
    label: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves in common axes.

    Attributes:
      title: heading.
      unit: unit of the values; "" for none.
      lines: the curves.
      x_ticks: labels of the steps.
      y_ticks: labels of the values.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Returns the curves of a run by metric name, also while it runs.

    Args:
      run_dir: run directory, on a local disk or in a bucket.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    path = run_dir / METRICS_FILE
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if line.endswith(b"\n"):  # the last line may be incomplete
            values = json.loads(line)
            step = values.pop("step")
            for name, value in values.items():
                points.setdefault(name, []).append((step, value))
    return {name: Curve(*(np.asarray(column) for column in zip(*pairs, strict=True))) for name, pairs in points.items()}


def draw(title: str, curves: Mapping[str, Curve], *, unit: str = "", is_log: bool = False) -> Chart:
    """Draws curves in common axes.

    Args:
      title: heading of the chart.
      curves: curves by label, at least one.
      unit: unit of the values.
      is_log: whether the axis of the values is logarithmic. Values that are not positive are left out.
    """
    shown = {label: _finite(_shorten(curve), is_log) for label, curve in curves.items()}
    steps = np.concatenate([curve.steps for curve in shown.values()])
    values = np.concatenate([curve.values for curve in shown.values()])
    if not len(steps):
        return Chart(title, unit, (), (), ())
    x_range = (0.0, float(max(steps.max(), 1)))
    y_ticks = _log_ticks(values) if is_log else _linear_ticks(*_value_range(values))
    y_range = (min(values.min(), y_ticks[0]), max(values.max(), y_ticks[-1]))
    scale = np.log10 if is_log else np.asarray

    def x_pixels(step: np.ndarray) -> np.ndarray:
        return LEFT + (WIDTH - LEFT - RIGHT) * (np.asarray(step) - x_range[0]) / (x_range[1] - x_range[0])

    def y_pixels(value: np.ndarray) -> np.ndarray:
        low, high = scale(y_range[0]), scale(y_range[1])
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(value) - low) / max(high - low, 1e-12)

    lines = tuple(
        Line(
            label,
            index,
            tuple(zip(x_pixels(curve.steps).round(1).tolist(), y_pixels(curve.values).round(1).tolist(), strict=True)),
            tuple(f"{label}, step {s}: {format_value(v)}" for s, v in zip(*curve, strict=True)),
            is_dotted=len(curve.steps) <= MAX_POINTS // 4,
        )
        for index, (label, curve) in enumerate(shown.items())
    )
    return Chart(
        title,
        unit,
        lines,
        tuple(Tick(float(x_pixels(x)), format_value(x)) for x in _linear_ticks(*x_range) if x <= x_range[1]),
        tuple(Tick(float(y_pixels(y)), format_value(y)) for y in y_ticks),
    )


def format_value(value: float) -> str:
    """Returns a number with at most three significant digits after the thousands, such as 0.00012, 3.41 or 12,500."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _shorten(curve: Curve) -> Curve:
    """Replaces the values of a long curve by the means of `MAX_POINTS` stretches of equal length."""
    if len(curve.steps) <= MAX_POINTS:
        return curve
    edges = np.linspace(0, len(curve.steps), MAX_POINTS + 1).astype(int)
    counts = np.diff(edges)
    return Curve(np.add.reduceat(curve.steps, edges[:-1]) // counts, np.add.reduceat(curve.values, edges[:-1]) / counts)


def _finite(curve: Curve, is_log: bool) -> Curve:
    keep = np.isfinite(curve.values) & ((curve.values > 0) | (not is_log))
    return Curve(curve.steps[keep], curve.values[keep])


def _value_range(values: np.ndarray) -> tuple[float, float]:
    """Returns the range of the values. It starts at 0 if that takes at most a third of the height."""
    low, high = float(values.min()), float(values.max())
    if 0 <= low <= (high - low) / 2:
        low = 0.0
    return (low, high) if high > low else (low - abs(low) / 2, high + abs(high) / 2 or 1.0)


def _linear_ticks(low: float, high: float) -> Sequence[float]:
    """Returns three to six round numbers, of which the first is at most `low` and the last at least `high`."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(values: np.ndarray) -> Sequence[float]:
    """Returns powers of ten around the values, at most about six."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    high = max(high, low + 1)
    return [10.0**exponent for exponent in range(low, high + 1, -(-(high - low) // 5))]
