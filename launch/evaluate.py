"""Answer and score held-out clips: python -m launch.evaluate --model RUN --output EVAL

Writes EVAL/predictions.jsonl (one line per clip; a killed evaluation goes on where it stopped), EVAL/scores.json, and
EVAL/index.html with the score table, players and spectrograms. Every question is also asked with silence instead of
the clip: what a model scores there, it scores without hearing.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from launch import cli

DEFAULT_SPLITS = ("test", "unheard")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=pathlib.Path, help="model or run directory")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="EVAL", help="directory of the results")
    parser.add_argument("--corpus", default="minicorpus", help="corpus to read (default: %(default)s)")
    parser.add_argument(
        "--data-dir", default=".cache/minicorpus", type=pathlib.Path, help="where it lies (default: %(default)s)"
    )
    parser.add_argument("--splits", nargs="+", default=DEFAULT_SPLITS, help="splits of it (default: test unheard)")
    parser.add_argument("--batch-size", type=int, default=32, help="clips at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="longest answer (default: %(default)s)")
    arguments = vars(parser.parse_args())
    cli.start_jax()
    evaluate(**arguments)


def evaluate(
    model: pathlib.Path,
    output: pathlib.Path,
    corpus: str,
    data_dir: pathlib.Path,
    splits: Sequence[str] = DEFAULT_SPLITS,
    batch_size: int = 32,
    max_new_tokens: int = 48,
) -> None:
    """Predicts what is not predicted yet, scores everything, and writes the report.

    Several processes share the questions, each on devices of its own; the first one scores.
    """
    import jax

    import salmonn_jax
    from data_pipelines import corpora
    from data_pipelines.transforms.prompt_templates import PromptTemplates
    from salmonn_jax import distributed
    from salmonn_jax.evaluation import predict, predictions, report, tasks

    opened, wordings = corpora.open_corpus(corpus, data_dir), PromptTemplates.load()
    loaded = salmonn_jax.load(model)
    output.mkdir(parents=True, exist_ok=True)
    keys: set[str] = set()
    clips = {}
    mine = predictions.prediction_path(output, jax.process_index())
    with predictions.PredictionLog(mine, [p for p in predictions.find_prediction_files(output) if p != mine]) as log:
        for split in splits:
            examples = [
                e
                for source in opened.sources_with_audio(split)
                for e in examples_with_prompts(opened.open_source(source, split), wordings)
            ]
            clips |= {example.id: example.audio for example in examples}
            for condition in ("audio", "silence"):
                keys |= predict.predict(
                    loaded,
                    examples,
                    log,
                    split=split,
                    condition=condition,
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                    shard=(jax.process_index(), jax.process_count()),
                )
    distributed.barrier("all predictions are made", 3600)
    if not distributed.is_main_process():
        return
    found = {p.key: p for file in predictions.find_prediction_files(output) for p in predictions.read_predictions(file)}
    made = [p for key, p in found.items() if key in keys]
    rows = tasks.score(made)
    (output / "scores.json").write_text(tasks.to_json(rows))
    title = f"What {model.name} hears"
    report.write_report(output / "index.html", rows, made, clips.get, title=title, notes=opened.notes)
    print(tasks.format_table(rows))
    print(f"\nreport: {output / 'index.html'}")


def examples_with_prompts(source: Sequence, prompt_templates: Any) -> Iterator:
    """The examples that can be used, each with a prompt: the first wording of its task, where it brings none."""
    from data_pipelines.examples import BadExample

    for index in range(len(source)):
        try:
            example = source[index]
            if not example.prompt:
                heard = example.audio is not None
                prompt = prompt_templates.render(example.task, example.question, 0, has_audio=heard)
                example = dataclasses.replace(example, prompt=prompt)
        except BadExample as bad:
            print(f"left out: example {index} of {source}: {bad}", file=sys.stderr)
            continue
        yield example


if __name__ == "__main__":
    cli.run(main)
