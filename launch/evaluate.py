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

SPLITS = ("test", "unheard")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=pathlib.Path, help="model or run directory")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="EVAL", help="directory of the results")
    parser.add_argument("--corpus", default="minicorpus", help="corpus to read (default: %(default)s)")
    parser.add_argument(
        "--cache", default=".cache/minicorpus", type=pathlib.Path, help="where it lies (default: %(default)s)"
    )
    parser.add_argument("--splits", nargs="+", default=SPLITS, help="splits of it (default: test unheard)")
    parser.add_argument("--batch-size", type=int, default=32, help="clips at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="longest answer (default: %(default)s)")
    arguments = vars(parser.parse_args())
    cli.start_jax()
    evaluate(**arguments)


def evaluate(
    model: pathlib.Path,
    output: pathlib.Path,
    corpus: str,
    cache: pathlib.Path,
    splits: Sequence[str] = SPLITS,
    batch_size: int = 32,
    max_new_tokens: int = 48,
) -> None:
    """Predicts what is not predicted yet, scores everything, and writes the report.

    Several processes share the questions, each on devices of its own; the first one scores.
    """
    import jax

    import salmonn_jax
    from data_pipelines import corpora
    from data_pipelines.stream.prompt_templates import Wordings
    from salmonn_jax import distributed
    from salmonn_jax.evaluation import predictions, report, run, tasks

    opened, wordings = corpora.open_corpus(corpus, cache), Wordings.load()
    loaded = salmonn_jax.load(model)
    output.mkdir(parents=True, exist_ok=True)
    keys: set[str] = set()
    clips = {}
    mine = predictions.file_of(output, jax.process_index())
    with predictions.PredictionLog(mine, [p for p in predictions.files(output) if p != mine]) as log:
        for split in splits:
            examples = [e for source in opened.heard(split) for e in questions(opened.read(source, split), wordings)]
            clips |= {example.id: example.audio for example in examples}
            for hearing in ("audio", "silence"):
                keys |= run.predict(
                    loaded,
                    examples,
                    log,
                    split=split,
                    hearing=hearing,
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                    share=(jax.process_index(), jax.process_count()),
                )
    distributed.barrier("all predictions are made", 3600)
    if not distributed.is_main():
        return
    found = {p.key: p for file in predictions.files(output) for p in predictions.read(file)}
    made = [p for key, p in found.items() if key in keys]
    rows = tasks.score(made)
    (output / "scores.json").write_text(tasks.to_json(rows))
    title = f"What {model.name} hears"
    report.write_report(output / "index.html", rows, made, clips.get, title=title, notes=opened.notes)
    print(tasks.format_table(rows))
    print(f"\nreport: {output / 'index.html'}")


def questions(source: Sequence, wordings: Any) -> Iterator:
    """The examples that can be used, each with a prompt: the first wording of its task, where it brings none."""
    from data_pipelines.sources.manifest_entries import BadExample

    for index in range(len(source)):
        try:
            example = source[index]
            if not example.prompt:
                heard = example.audio is not None
                prompt = wordings.choose(example.task, example.question, 0, audio=heard)
                example = dataclasses.replace(example, prompt=prompt)
        except BadExample as bad:
            print(f"left out: example {index} of {source}: {bad}", file=sys.stderr)
            continue
        yield example


if __name__ == "__main__":
    cli.run(main)
