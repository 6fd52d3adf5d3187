"""The page of a training run: one self-contained HTML file without scripts, which loads nothing from the network."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

import jinja2

from salmonn_jax import config as configuration
from salmonn_jax.config import Recipe
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_write
from salmonn_jax.model_directory import read_config_json
from salmonn_jax.paths import Path
from salmonn_jax.training.run_page import curves
from salmonn_jax.training.run_page.curves import Chart, Curve

# Charts of the whole run: heading, {label: metric}, unit, logarithmic values.
OVERVIEW = (
    ("Loss", {"training": "loss", "held-out": "eval/loss"}, "nats per token", False),
    ("Token accuracy", {"training": "accuracy", "held-out": "eval/accuracy"}, "", False),
    ("CTC loss", {"training": "ctc", "held-out": "eval/ctc"}, "nats per token", False),
)
SPEED = (
    ("Learning rate", {"learning rate": "learning_rate"}, "", False),
    ("Examples and clips", {"examples": "examples_per_second", "clips": "clips_per_second"}, "per second", False),
    ("Audio", {"audio": "audio_seconds_per_second"}, "seconds per second", False),
    ("Tokens", {"tokens": "tokens_per_second"}, "per second", False),
    (
        "Waiting",
        {"data": "data_wait_seconds", "checkpoint": "checkpoint_seconds", "compilation": "compile_seconds"},
        "seconds",
        True,
    ),
)


def write_run_page(run_dir: Path, output: Path | None = None) -> Path:
    """Writes the page of a run and returns its path. The run may be running. The file is replaced atomically.

    Args:
      run_dir: run directory, on a local disk or in a bucket.
      output: path of the HTML file; by default `index.html` in the run directory.

    Raises:
      UserError: the directory is not a run, or it has no metrics.
    """
    output = run_dir / "index.html" if output is None else output
    description = read_config_json(run_dir)
    if "recipe" not in description:
        raise UserError(f"{run_dir} is a model directory, not a run; give the --output of launch.train")
    recipe = configuration.from_dict(Recipe, description["recipe"])
    found = curves.read_curves(run_dir)
    if "loss" not in found:
        raise UserError(f"{run_dir} has no metrics yet; try again when its first step has ended")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("run_page.html").render(
        title=run_dir.name,
        recipe=recipe,
        num_steps=int(found["loss"].steps[-1]),
        sections=dict(_sections(found)),
        last_values={name: curves.format_value(curve.values[-1]) for name, curve in sorted(found.items())},
        format_value=curves.format_value,
        best=_best(recipe, found),
        layout=curves,
        zip=zip,
    )
    with atomic_write(output) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return output


def _sections(found: Mapping[str, Curve]) -> Iterator[tuple[str, list[Chart]]]:
    """Yields the heading and the charts of each section that has charts."""
    sources = _names(found, "share/", "loss/", "eval/loss/")
    sections = {
        "Training and held-out examples": [_chart(found, *chart) for chart in OVERVIEW],
        "By source": [
            _chart(
                found, f"{source}: {kind}", {"training": f"{name}/{source}", "held-out": f"eval/{name}/{source}"}, unit
            )
            for source in sources
            for kind, name, unit in (("loss", "loss", "nats per token"), ("token accuracy", "accuracy", ""))
        ],
        "Gradients and data": [
            _chart(
                found,
                "Gradient norm by module",
                {"all": "gradient_norm"} | {name: f"gradient_norm/{name}" for name in _names(found, "gradient_norm/")},
                "",
                True,
            ),
            _chart(found, "Share of examples", {name: f"share/{name}" for name in _names(found, "share/")}),
        ],
        "Speed": [_chart(found, *chart) for chart in SPEED],
    }
    for heading, charts in sections.items():
        drawn = [chart for chart in charts if chart is not None and chart.lines]
        if drawn:
            yield heading, drawn


def _names(found: Mapping[str, Curve], *prefixes: str) -> list[str]:
    """Returns what follows one of the prefixes in the names of metrics."""
    return sorted({name.removeprefix(prefix) for name in found for prefix in prefixes if name.startswith(prefix)})


def _chart(
    found: Mapping[str, Curve], title: str, metrics: Mapping[str, str], unit: str = "", is_log: bool = False
) -> Chart | None:
    """Returns a chart of those metrics that the run has; None if it has none."""
    chosen = {label: found[name] for label, name in metrics.items() if name in found}
    return curves.draw(title, chosen, unit=unit, is_log=is_log) if chosen else None


def _best(recipe: Recipe, found: Mapping[str, Curve]) -> tuple[int, float] | None:
    """Returns the step and the value of the best evaluation in terms of `recipe.keep_best`; None if there is none."""
    curve = found.get(recipe.keep_best)
    if curve is None:
        return None
    best = curve.values.argmax() if recipe.keep_best.startswith("eval/accuracy") else curve.values.argmin()
    return int(curve.steps[best]), float(curve.values[best])
