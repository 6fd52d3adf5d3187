"""Evaluate a model on held-out clips: python -m launch.evaluate --model RUN --output EVAL

Writes EVAL/predictions.jsonl (one line per clip and condition), EVAL/scores.json, and EVAL/index.html with the score
table, audio players and spectrograms. A killed evaluation resumes with the same command. Each clip is evaluated under
two conditions: "audio" passes the clip to the model, "silence" replaces it by silence. The score with silence shows
what the model answers correctly from the prompt alone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from launch import cli

if TYPE_CHECKING:
    from data_pipelines.examples import Example
    from data_pipelines.transforms.prompt_templates import PromptTemplates
    from salmonn_jax.paths import Path

DEFAULT_SPLITS = ("test", "unheard")


def main() -> None:
    """Parses the command line and evaluates."""
    parser = cli.make_parser("evaluate", __doc__)
    parser.add_argument("--model", required=True, type=cli.path, help="model or run directory")
    parser.add_argument("--output", required=True, type=cli.output_path, metavar="EVAL", help="output directory")
    parser.add_argument("--corpus", default="minicorpus", help="name of the corpus (default: %(default)s)")
    parser.add_argument(
        "--data-dir",
        default=".cache/minicorpus",
        type=cli.path,
        help="directory of the corpus (default: %(default)s)",
    )
    parser.add_argument(
        "--splits", nargs="+", default=DEFAULT_SPLITS, help="splits to evaluate (default: test unheard)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="clips per batch (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=48, help="maximum tokens of an answer (default: %(default)s)"
    )
    cli.add_audio_options(parser, "error", "truncate", "chunk", "chunk_answers")
    arguments = vars(parser.parse_args())
    cli.start_jax()
    evaluate(**arguments)


def evaluate(
    model: Path,
    output: Path,
    corpus: str,
    data_dir: Path,
    splits: Sequence[str] = DEFAULT_SPLITS,
    batch_size: int = 32,
    max_new_tokens: int = 48,
    too_long: str = "error",
    channels: str = "first",
) -> None:
    """Generates the missing predictions, scores all predictions, and writes the scores and the report.

    The processes of a job divide the examples. Each uses its first device. Process 0 scores and writes the report.

    Args:
      model: model or run directory.
      output: output directory. Predictions in it are reused.
      corpus: name of the corpus.
      data_dir: directory of the corpus.
      splits: splits to evaluate.
      batch_size: clips per batch.
      max_new_tokens: maximum number of tokens of an answer.
      too_long: what happens to clips longer than the encoder window (see `salmonn_jax.audio.windows`).
      channels: channel of the recordings that is used, in a corpus that reads files.

    Raises:
      UserError: the model, the corpus or a split does not exist, or there is nothing to score.
    """

    import salmonn_jax
    from data_pipelines import corpora
    from data_pipelines.sources.audio import AudioRules
    from data_pipelines.transforms.prompt_templates import PromptTemplates
    from salmonn_jax import distributed
    from salmonn_jax.evaluation import predict, predictions, report, scoring
    from salmonn_jax.files import atomic_write

    # The corpus returns whole clips; the model applies `too_long`.
    rules = AudioRules(channels=channels, too_long="chunk")
    opened_corpus, prompt_templates = corpora.open_corpus(corpus, data_dir, rules), PromptTemplates.load()
    loaded_model = salmonn_jax.load(model)
    examples_by_split = {
        split: [
            example
            for source in opened_corpus.evaluation_sources(split)
            for example in examples_with_prompts(source, opened_corpus.open_source(source, split), prompt_templates)
        ]
        for split in splits
    }
    for split, examples in examples_by_split.items():
        num_long = predict.check_examples(loaded_model, examples, max_new_tokens=max_new_tokens, too_long=too_long)
        if num_long:
            window = loaded_model.config.audio.window_seconds
            print(
                f"{split}: {num_long} of {len(examples)} clips are longer than the window of {window:g} s: {too_long}",
                file=sys.stderr,
            )
    output.mkdir(parents=True, exist_ok=True)
    keys: set[str] = set()
    clips = {}
    own_path = predictions.prediction_path(output, distributed.process_shard()[0])
    other_paths = [path for path in predictions.find_prediction_files(output) if path != own_path]
    with predictions.PredictionLog(own_path, other_paths) as log:
        for split, examples in examples_by_split.items():
            clips |= {example.id: example.audio for example in examples}
            for condition in ("audio", "silence"):
                keys |= predict.predict(
                    loaded_model,
                    examples,
                    log,
                    split=split,
                    condition=condition,
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                    too_long=too_long,
                    shard=distributed.process_shard(),
                )
    distributed.barrier("all predictions are made", 3600)
    if not distributed.is_main_process():
        return
    predictions_by_key = {
        prediction.key: prediction
        for path in predictions.find_prediction_files(output)
        for prediction in predictions.read_predictions(path)
    }
    # The files may also hold predictions of other weights or settings, whose keys are not in `keys`.
    selected = [prediction for key, prediction in predictions_by_key.items() if key in keys]
    rows = scoring.score(selected)
    failures = scoring.count_failures(selected, rows)
    with atomic_write(output / "scores.json") as unfinished:
        unfinished.write_text(scoring.to_json(rows, failures), "utf-8")
    title = f"Evaluation of {model.name}"
    report.write_report(
        output / "index.html",
        rows,
        selected,
        lambda prediction: clips.get(prediction.id),
        title=title,
        notes=opened_corpus.notes,
        failures=failures,
    )
    print(scoring.format_table(rows))
    print(f"\nreport: {output / 'index.html'}")


def examples_with_prompts(
    source: str, examples: Sequence[Example], prompt_templates: PromptTemplates
) -> Iterator[Example]:
    """Yields the usable examples of a source and reports the others on stderr.

    An example without a prompt gets the first prompt template of its task.

    Args:
      source: name of the source, for the reports.
      examples: random-access sequence that raises BadExample for an example that cannot be used.
      prompt_templates: prompt templates by task.
    """
    from data_pipelines.examples import BadExample

    for index in range(len(examples)):
        try:
            example = examples[index]
            if not example.prompt:
                has_audio = example.audio is not None
                prompt = prompt_templates.render(example.task, example.question, 0, has_audio=has_audio)
                example = dataclasses.replace(example, prompt=prompt)
        except BadExample as error:
            print(f"skipped example {index} of {source}: {error}", file=sys.stderr)
            continue
        yield example


if __name__ == "__main__":
    cli.run(main)
