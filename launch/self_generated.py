"""Shared steps of the verbs of `launch.prepare` that let a model generate its own training data.

A verb asks questions about rows with the machinery of `launch.evaluate`, keeps the answers that pass the rules, and
writes them as a manifest. The answers of the model stay in a directory beside the manifest, so that the same command
resumes, and other rules need no new answers.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launch import answering, cli

if TYPE_CHECKING:
    from data_pipelines.evaluation.rows import EvaluationRows
    from salmonn_jax.config import GenerationConfig
    from salmonn_jax.evaluation.predictions import Prediction
    from salmonn_jax.paths import Path
    from salmonn_jax.self_generated import AnswerRules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Rows that are answered with the same settings of decoding."""

    rows: EvaluationRows
    generation_config: GenerationConfig


def add_rule_options(parser: argparse.ArgumentParser, **defaults: float) -> None:
    """Adds the options of the rules for answers, with these default values of `AnswerRules`."""
    group = parser.add_argument_group("rules; an answer also needs a word, and a stop token at its end")
    helps = {
        "min_words": ("least number of words", cli.positive_int),
        "max_words": ("largest number of words", cli.positive_int),
        "max_repeated": ("largest share of repeated sequences of three words", cli.share),
        "max_transcript": ("largest share of words that are in the transcript or the answer of the data", cli.share),
    }
    for name, (text, number_type) in helps.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=number_type,
            default=defaults[name],
            help=f"{text} (default: %(default)s)",
        )


def rules_of(options: argparse.Namespace) -> AnswerRules:
    """Returns the rules that the options of `add_rule_options` set. Raises UserError if no length fits."""
    from salmonn_jax.errors import UserError
    from salmonn_jax.self_generated import AnswerRules

    if options.min_words > options.max_words:
        raise UserError(f"--min-words {options.min_words}: must be at most --max-words {options.max_words}")
    return AnswerRules(**{field.name: getattr(options, field.name) for field in dataclasses.fields(AnswerRules)})


@contextlib.contextmanager
def answer_all(
    options: argparse.Namespace, questions: Mapping[str, Questions]
) -> Iterator[dict[str, list[Prediction]] | None]:
    """Answers questions, and yields the answers, by the names of the questions; None if SIGTERM ended the job.

    Answers that exist already are not made again. While the block runs, no other job has the same output.

    Args:
      options: options of `answering` and `cli.add_audio_options`, and the output.
      questions: questions by name. Their answers are in a directory of this name (see `answers_directory`).

    Raises:
      UserError: the rows, the model or an option is wrong, or the output exists and was not made by such a command.
      RunError: the preflight or too many answers failed.
    """
    from salmonn_jax import distributed, model_directory
    from salmonn_jax.errors import UserError
    from salmonn_jax.evaluation import settings
    from salmonn_jax.evaluation.lock import exclusive
    from salmonn_jax.evaluation.predictions import MERGED_FILE, read_predictions
    from salmonn_jax.evaluation.run import run_evaluation

    directory = answers_directory(options.output)
    if options.output.exists() and not directory.is_dir():
        raise UserError(f"{options.output} already exists; choose another --output")
    mesh = settings.local_mesh(answering.parse_mesh(options.mesh))
    files = model_directory.open_model(options.model)
    evaluations = {}
    for name, question in questions.items():
        evaluations[name] = settings.make_evaluation(
            files,
            options.model,
            question.rows,
            question.generation_config,
            mesh,
            too_long=options.too_long,
            channels=options.channels,
            max_failures=answering.check_rows(question.rows, 1, options.max_failures),
            batch_size=options.batch_size,
            preflight=options.preflight,
        )
        evaluations[name].check_settings(directory / name)
    with exclusive(directory):
        if distributed.process_shard()[1] > 1:
            distributed.preflight(directory)
        model = settings.load_evaluated(files, options.model, mesh)
        with distributed.exit_on_peer_failure():
            finished = all(run_evaluation(model, evaluations[name], directory / name) for name in evaluations)
        yield {name: read_predictions(directory / name / MERGED_FILE) for name in evaluations} if finished else None


def answers_directory(output: Path) -> Path:
    """Returns the directory beside a manifest that holds all answers of the model. Raises UserError if it is none."""
    from salmonn_jax.errors import UserError

    if output.suffix != ".jsonl":
        raise UserError(f"--output {output}: must be a manifest, NAME.jsonl")
    return output.with_name(f"{output.stem}.answers")


def write_kept(
    output: Path,
    rows: EvaluationRows,
    answers: Sequence[Prediction],
    rules: AnswerRules,
    known_texts: Callable[[Prediction], Iterable[str]],
) -> None:
    """Writes the answers that pass the rules as a manifest, and the others beside it, and prints their numbers.

    Args:
      output: path of the manifest.
      rows: rows of the answers.
      answers: all answers.
      rules: rules for answers.
      known_texts: returns the texts that an answer must not repeat.

    Raises:
      RunError: no answer passes the rules.
    """
    from data_pipelines.self_generated import manifest
    from salmonn_jax.errors import RunError
    from salmonn_jax.self_generated import sort_answers

    answers = sorted(answers, key=lambda answer: (answer.source, answer.split, answer.id))
    kept, rejected = sort_answers(answers, rules, known_texts)
    manifest.write_answers(output, rows, kept, rejected)
    counts = collections.Counter(rejection.rule for _, rejection in rejected)
    reasons = ", ".join(
        f"{rule} {count}" for rule, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    where = manifest.rejected_path(output)
    if not kept:
        raise RunError(f"none of {len(answers)} answers is kept ({reasons}); {where} has them with the reasons")
    print(f"kept {len(kept)} of {len(answers)} answers: {output}")
    if rejected:
        print(f"rejected {len(rejected)} ({reasons}): {where}")
