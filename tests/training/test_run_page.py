"""Tests of the curves of the run page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from salmonn_jax import config, paths
from salmonn_jax.configs import get_preset
from salmonn_jax.errors import UserError
from salmonn_jax.training.run_page import curves, page
from salmonn_jax.training.run_page.curves import MAX_POINTS, Curve


def curve(values, first_step: int = 1) -> Curve:
    return Curve(np.arange(first_step, first_step + len(values)), np.asarray(values, float))


def write_run(run, lines) -> None:
    """Writes a run directory with these metrics, and an incomplete last line."""
    preset = get_preset("debug")
    description = {"format": 1, "model": config.to_dict(preset.model), "recipe": config.to_dict(preset.recipe)}
    (run / "config.json").write_text(json.dumps(description))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')


def test_a_running_run_in_a_bucket(bucket):
    """The page has those charts whose metrics the run has, and ignores the line that is being written."""
    run = paths.as_path("gs://lab/run")
    write_run(run, [{"step": 1, "loss": 3.0, "loss/<a>": 4.0}, {"step": 1, "eval/loss": 3.5}, {"step": 2, "loss": 2.0}])
    assert str(page.write_run_page(run)) == "gs://lab/run/index.html"
    text = (run / "index.html").read_text()
    assert "Step 2 of 6." in text and "&lt;a&gt;: loss" in text and "<a>" not in text
    for title in ("training, step 1: 3<", "training, step 2: 2<", "held-out, step 1: 3.5<"):
        assert f"<title>{title}" in text
    assert "Learning rate" not in text and "Speed" not in text and "step 9" not in text


def test_what_has_no_page(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        page.write_run_page(tmp_path)
    write_run(tmp_path, [])
    with pytest.raises(UserError, match="has no metrics yet"):
        page.write_run_page(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "model": {}}')
    with pytest.raises(UserError, match="is a model directory, not a run"):
        page.write_run_page(tmp_path)


def test_long_curves_show_means():
    """Also of values that fill no whole stretch; no value is left out."""
    values = np.arange(10 * MAX_POINTS + 7, dtype=float)
    (line,) = curves.draw("t", {"a": curve(values)}).lines
    assert len(line.points) == MAX_POINTS
    first = float(line.titles[0].split(": ")[1])
    assert first == pytest.approx(4.5) and line.titles[0].startswith("a, step 5: ")
    heights = [y for _, y in line.points]
    assert heights == sorted(heights, reverse=True) and heights[0] > heights[-1]


def test_points_are_on_the_scale_of_the_axes():
    chart = curves.draw("t", {"a": curve([0.0, 5.0, 10.0]), "b": curve([10.0])})
    ticks = {tick.label: tick.position for tick in chart.y_ticks}
    (x1, low), (_, middle), (x3, high) = chart.lines[0].points
    assert (low, high) == (ticks["0"], ticks["10"]) and middle == pytest.approx((low + high) / 2, abs=0.1)
    assert chart.lines[1].points == ((x1, high),)
    assert {tick.label: tick.position for tick in chart.x_ticks}["3"] == x3


def test_logarithmic_axes():
    """Equal ratios are equal distances, and what has no logarithm is left out."""
    chart = curves.draw("t", {"a": curve([0.01, 0.0, 1.0, -1.0, 100.0])}, is_log=True)
    ys = [y for _, y in chart.lines[0].points]
    assert len(ys) == 3 and ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert {tick.label for tick in chart.y_ticks} >= {"0.01", "1", "100"}


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-2.0, -2.0], [np.nan, 1.0], [np.nan], [1e-30, 1e30], [3.0] * 999]
)
def test_odd_values_are_drawn(values):
    for is_log in (False, True):
        chart = curves.draw("t", {"a": curve(values)}, is_log=is_log)
        assert all(np.isfinite(point).all() for line in chart.lines for point in line.points)
        assert all(0 <= tick.position <= curves.HEIGHT for tick in chart.y_ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1"),
        (0.000123, "0.000123"),
        (3.14159, "3.14"),
        (12500.4, "12,500"),
        (1e-5, "1e-5"),
        (2.5e7, "2.5e7"),
    ],
)
def test_numbers(value, text):
    assert curves.format_value(value) == text
