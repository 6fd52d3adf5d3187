"""Evaluate a model on data sets: python -m launch.evaluate --model MODEL --manifest TEST.jsonl --output EVAL

Writes EVAL/predictions.jsonl (one line per row and condition), EVAL/scores.json, EVAL/run.json (settings and counts)
and EVAL/index.html (score table, audio players, spectrograms). A killed evaluation resumes with the same command, on
any number of hosts and devices. Everything is checked before the first prediction; a clip that cannot be used becomes a
prediction with an error, and the exit code is 2. docs/evaluation.md describes what is promised.

  python -m launch.evaluate --model MODEL --manifest test-clean.jsonl --manifest test-other.jsonl --output EVAL
  python -m launch.evaluate --model MODEL --manifest DATA/mine --output EVAL --mesh tensor=4 --num-beams 1
  python -m launch.evaluate --model runs/quickstart/mini_stage3 --output EVAL --conditions audio silence
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from launch import answering, cli

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from data_pipelines.evaluation.rows import EvaluationRows, NamedSource
    from salmonn_jax import Model
    from salmonn_jax.config import GenerationConfig
    from salmonn_jax.evaluation.predictions import Prediction
    from salmonn_jax.model_directory import ModelFiles
    from salmonn_jax.paths import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an evaluation beside the model, the data sets and the settings of decoding.

    Attributes:
      conditions: "audio" passes each clip to the model, "silence" zeros of its length. The score with silence shows
        what the model answers correctly from the prompt alone.
      prompt_templates: file of prompt templates; None for the test prompts of the original.
      mesh: sizes of the axes of each process's device mesh, such as {"tensor": 4}; `data` takes the other devices.
      batch_size: rows that a process decodes at a time; None chooses it from the memory of its devices.
      max_failures: errors after which the evaluation ends; None for 10 % of the predictions, and at least 10.
      too_long: what happens to clips longer than the encoder window (see `salmonn_jax.audio.windows`).
      channels: channel of the recordings that is used.
      preflight: whether the first answers are checked.
    """

    conditions: Sequence[str] = ("audio",)
    prompt_templates: str | None = None
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    batch_size: int | None = None
    max_failures: int | None = None
    too_long: str = "error"
    channels: str = "first"
    preflight: bool = True


def main() -> None:
    """Parses the command line and evaluates."""
    parser = make_parser()
    arguments = vars(parser.parse_args())
    generation_config = cli.pop_generation_config(arguments)
    arguments["mesh"] = answering.parse_mesh(arguments["mesh"])
    arguments["conditions"] = list(dict.fromkeys(arguments["conditions"]))
    options = Options(**{field.name: arguments[field.name] for field in dataclasses.fields(Options)})
    model, output, manifests = arguments["model"], arguments["output"], arguments["manifest"]
    cli.start_jax()
    sources, notes = answering.open_sources(
        manifests, arguments["corpus"], arguments["data_dir"], arguments["splits"], options.channels
    )
    num_failures = evaluate(model, output, sources, generation_config, options, notes=notes)
    if num_failures is None:
        sys.exit(arguments["sigterm_exit_code"])
    if num_failures:
        sys.exit(2)


def make_parser(
    path: Callable[[str], object] = cli.path,
    output_path: Callable[[str], object] = cli.output_path,
    file_to_read: Callable[[str], object] = cli.file_to_read,
) -> cli.Parser:
    """Returns the parser of the command line. Other types of paths check the arguments of a job (`launch.submit`).

    Args:
      path: type of options that read a directory or file.
      output_path: type of the output directory.
      file_to_read: type of options that read a single file.
    """
    parser = cli.make_parser("evaluate", __doc__)
    answering.add_source_options(parser, "test unheard; all but train of a data set", path)
    parser.add_argument("--output", required=True, type=output_path, metavar="EVAL", help="output directory")
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=("audio", "silence"),
        default=["audio"],
        help="what the model gets: the clip, or silence of its length (default: audio)",
    )
    parser.add_argument(
        "--prompt-templates",
        type=file_to_read,
        metavar="FILE",
        help="prompts of rows without their own: JSON, {task: prompt} (default: the test prompts of the original)",
    )
    answering.add_run_options(parser)
    cli.add_audio_options(parser, "error", "truncate", "chunk", "chunk_answers")
    cli.add_generation_options(parser)
    return parser


def evaluate(
    model: Path,
    output: Path,
    sources: Sequence[NamedSource],
    generation_config: GenerationConfig,
    options: Options,
    *,
    notes: Sequence[str] = (),
    load: Callable[[ModelFiles, Path, Mesh], Model] | None = None,
) -> int | None:
    """Makes the missing predictions, scores all predictions, and writes the scores and the report.

    The processes of a job divide the predictions. Each has the whole model on its own devices.

    Args:
      model: model or run directory.
      output: output directory. Predictions in it are reused.
      sources: data sets.
      generation_config: settings of decoding.
      options: other options.
      notes: sentences about the data sets, for the report.
      load: loads the weights; None for `salmonn_jax.evaluation.settings.load_evaluated`. Evaluations of one model share
        compiled programs if they get one model.

    Returns:
      The number of rows that cannot be used and of predictions with an error; None if SIGTERM ended the evaluation.

    Raises:
      UserError: the data sets, the model or the settings are wrong, or `output` holds another evaluation.
      RunError: the preflight or too many predictions failed.
    """
    from data_pipelines.evaluation.rows import EvaluationRows
    from data_pipelines.transforms.prompt_templates import PromptTemplates
    from salmonn_jax import distributed, model_directory
    from salmonn_jax.evaluation import settings
    from salmonn_jax.evaluation.lock import exclusive
    from salmonn_jax.evaluation.run import run_evaluation
    from salmonn_jax.evaluation.tasks import check_task

    mesh = settings.local_mesh(options.mesh)
    files = model_directory.open_model(model)
    prompt_templates = PromptTemplates.load_for_evaluation(options.prompt_templates)
    rows = EvaluationRows(sources, prompt_templates, check_task)
    evaluation = settings.make_evaluation(
        files,
        model,
        rows,
        generation_config,
        mesh,
        too_long=options.too_long,
        channels=options.channels,
        max_failures=answering.check_rows(rows, len(options.conditions), options.max_failures),
        conditions=options.conditions,
        batch_size=options.batch_size,
        preflight=options.preflight,
    )
    evaluation.check_settings(output)
    warn_about_metrics(rows)
    with exclusive(output):
        if distributed.process_shard()[1] > 1:
            distributed.preflight(output)
        loaded = (load or settings.load_evaluated)(files, model, mesh)
        with distributed.exit_on_peer_failure():
            is_finished = run_evaluation(loaded, evaluation, output)
        if not is_finished:
            return None
        num_failures = (
            write_scores(output, rows, f"Evaluation of {model.name}", notes) if distributed.is_main_process() else 0
        )
    return num_failures + len(rows.rejected)


def warn_about_metrics(rows: EvaluationRows) -> None:
    """Prints a warning of one line if some metrics of the rows cannot be computed on this machine."""
    from salmonn_jax import distributed
    from salmonn_jax.evaluation.scoring.obstacles import find_obstacles

    if distributed.is_main_process() and (obstacles := find_obstacles(rows.tasks)):
        print(
            f"warning: some scores will not be computed here: {'; '.join(obstacles)}. The predictions are made all the "
            "same; launch.score scores them later",
            file=sys.stderr,
        )


def write_scores(output: Path, rows: EvaluationRows, title: str, notes: Sequence[str]) -> int:
    """Scores the merged predictions, writes scores and report, and returns the number of predictions with an error."""
    from salmonn_jax.evaluation import report, scoring
    from salmonn_jax.evaluation.predictions import MERGED_FILE, read_predictions
    from salmonn_jax.files import atomic_write

    predictions = read_predictions(output / MERGED_FILE)
    score_rows = scoring.score(predictions) if predictions else []
    failures = scoring.count_failures(predictions, score_rows) if predictions else []
    with atomic_write(output / "scores.json") as unfinished:
        unfinished.write_text(scoring.to_json(score_rows, failures), "utf-8")
    if not predictions:
        print("warning: the data sets have no rows; there is nothing to score", file=sys.stderr)
        return 0
    clips = ClipReader(rows)
    report.write_report(
        output / "index.html", score_rows, predictions, clips, title=title, notes=notes, failures=failures
    )
    print(scoring.format_table(score_rows))
    print(f"\nreport: {output / 'index.html'}")
    return sum(bool(prediction.error) for prediction in predictions)


class ClipReader:
    """Reads the clips of predictions that the report shows."""

    def __init__(self, rows: EvaluationRows):
        self._rows = rows

    @functools.cached_property
    def _index_by_row(self) -> dict[tuple[str, str, str], int]:
        fields = (self._rows.fields(index) for index in range(len(self._rows)))
        return {(row["source"], row["split"], row["id"]): index for index, row in enumerate(fields)}

    def __call__(self, prediction: Prediction) -> np.ndarray | None:
        """Returns the clip of a prediction as int16[samples] at 16 kHz; None if it has none that can be read."""
        from salmonn_jax.errors import AudioError

        index = self._index_by_row[prediction.source, prediction.split, prediction.id]
        try:
            return self._rows.read_audio(index) if self._rows.has_audio(index) else None
        except AudioError:
            return None


if __name__ == "__main__":
    cli.run(main)
