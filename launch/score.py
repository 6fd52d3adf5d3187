"""Score the predictions of an evaluation: python -m launch.score EVAL

Reads EVAL/predictions*.jsonl, prints the scores with 95 % intervals, and writes scores.json and the score tables of
index.html. The model is not needed, nor are JAX or an accelerator; metrics beside those of the mini-corpus need the
extra `score`. An answer that is missing because of an error counts as wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from typing import TYPE_CHECKING

from launch import cli
from salmonn_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salmonn_jax.evaluation.predictions import Prediction
    from salmonn_jax.evaluation.scoring import FailureCounts, ScoreRow
    from salmonn_jax.evaluation.scoring.agreement import Agreement
    from salmonn_jax.evaluation.scoring.compare import Comparison
    from salmonn_jax.paths import Path


def main() -> None:
    """Parses the command line and scores."""
    parser = cli.make_parser("score", __doc__)
    parser.add_argument("evaluation", type=cli.path, metavar="EVAL", help="directory with predictions*.jsonl")
    parser.add_argument(
        "--output", type=cli.output_path, metavar="DIR", help="where scores.json and index.html go (default: EVAL)"
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=[],
        metavar="TASK=NAME",
        help="score a task under another protocol or a generic metric, such as asr=asr-en-open-asr-merged@1",
    )
    parser.add_argument("--by", default="", metavar="KEY", help="divide the rows by source, language or a group's key")
    parser.add_argument("--exclude-errors", action="store_true", help="leave predictions with an error out")
    parser.add_argument("--compare", type=cli.path, metavar="EVAL", help="another evaluation, to compare with in pairs")
    parser.add_argument(
        "--judge", metavar="URL", help="also ask a judge about open answers, at this OpenAI-compatible address"
    )
    parser.add_argument("--judge-model", metavar="NAME", help="name of the judging model at that address")
    arguments = vars(parser.parse_args())
    protocols = list(map(_parse_protocol, arguments.pop("protocol")))
    arguments["protocols"] = dict(protocols)
    for task, count in collections.Counter(task for task, _ in protocols).items():
        if count > 1:
            raise UserError(f"--protocol names the task {task} twice; omit one")
    if bool(arguments["judge"]) != bool(arguments["judge_model"]):
        raise UserError("--judge and --judge-model must be given together")
    score(**arguments)


def score(
    evaluation: Path,
    output: Path | None = None,
    protocols: Mapping[str, str] | None = None,
    by: str = "",
    exclude_errors: bool = False,
    compare: Path | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
) -> None:
    """Scores the predictions of an evaluation, prints the scores and writes them.

    Args:
      evaluation: directory with the predictions.
      output: directory of scores.json and index.html; None for `evaluation`.
      protocols: task -> name of its protocol. Other tasks have their default protocol.
      by: property that divides the rows: "source", "language" or a key of the predictions' group; "" for no division.
      exclude_errors: whether predictions with an error are left out. Otherwise they count as wrong.
      compare: directory of another evaluation that is compared in pairs.
      judge: address of a judge for open answers; None for no judge.
      judge_model: name of the judging model.

    Raises:
      UserError: there is no prediction, or a task, protocol or property is unknown.
    """
    from salmonn_jax.evaluation import scoring
    from salmonn_jax.evaluation.scoring import table
    from salmonn_jax.evaluation.scoring.agreement import agreement, format_agreement
    from salmonn_jax.evaluation.scoring.compare import compare as compare_predictions
    from salmonn_jax.evaluation.scoring.compare import format_comparisons
    from salmonn_jax.files import atomic_write

    predictions = read_evaluation(evaluation)
    output = output or evaluation
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written to: {error.strerror or error}; choose another directory with --output"
        ) from None
    options = {"exclude_errors": exclude_errors, "by": by}
    rows = scoring.score(predictions, protocols=protocols, **options)
    comparisons: list[Comparison] = []
    agreements: list[Agreement] = []
    if compare is not None:
        others = read_evaluation(compare)
        comparisons = compare_predictions(predictions, others, protocols=protocols, **options)
        agreements = agreement(predictions, others, by=by)
    if judge is not None and judge_model is not None:
        rows = rows + _ask_judge(predictions, judge, judge_model, output, options)
    failures = scoring.count_failures(predictions, rows, by)
    parts: dict[str, object] = {}
    if compare is not None:
        parts = {"compared_with": str(compare), "comparisons": list(map(dataclasses.asdict, comparisons))}
        parts["agreement"] = list(map(dataclasses.asdict, agreements))
    with atomic_write(output / "scores.json") as unfinished:
        unfinished.write_text(scoring.to_json(rows, failures, exclude_errors=exclude_errors, **parts), "utf-8")
    sections = {
        "": scoring.format_table(rows),
        "answers that failed": scoring.format_failures(failures),
        "protocols": table.format_protocols(rows),
        "published values, other protocols": table.format_published(rows),
        f"compared with {compare}": comparisons and format_comparisons(comparisons, "here", "there"),
        f"agreement with {compare}": format_agreement(agreements),
    }
    print("\n\n".join(f"{title}:\n{text}" if title else text for title, text in sections.items() if text))
    if exclude_errors:
        print(f"\nexcluded: {sum(bool(p.error) for p in predictions)} predictions with an error")
    print(f"\nscores: {output / 'scores.json'}")
    print(f"report: {_write_page(evaluation, output, rows, failures, predictions)}")


def read_evaluation(directory: Path) -> list[Prediction]:
    """Returns the predictions in the files of a directory, each once. An answer takes the place of an error.

    Raises:
      UserError: the directory has no prediction file, or a file has a wrong line.
    """
    from salmonn_jax.evaluation.predictions import MERGED_FILE, find_prediction_files, read_predictions

    files = find_prediction_files(directory)
    if not files:
        raise UserError(f"{directory} has no predictions.jsonl; run launch.evaluate with --output {directory} first")
    if MERGED_FILE not in {file.name for file in files}:
        print(f"warning: {directory} is not finished; these are scores of what it has so far", file=sys.stderr)
    predictions: dict[str, Prediction] = {}
    for prediction in (p for file in files for p in read_predictions(file)):
        earlier = predictions.get(prediction.key)
        if earlier is None or earlier.error:
            predictions[prediction.key] = prediction
    return list(predictions.values())


def _parse_protocol(text: str) -> tuple[str, str]:
    """Returns the task and the protocol of TASK=NAME."""
    task, equals, name = text.partition("=")
    if not (task and equals and name):
        raise UserError(f"--protocol {text}: must be TASK=NAME, such as asr=asr-en-open-asr@1")
    return task, name


def _ask_judge(
    predictions: Sequence[Prediction], url: str, model: str, output: Path, options: Mapping[str, object]
) -> list[ScoreRow]:
    """Returns the rows of the judge. Prints what is sent to whom before it is sent, and what failed."""
    from salmonn_jax.evaluation.scoring.judge import Judge, is_judged, judge_rows

    judged = [p for p in predictions if is_judged(p)]
    if not judged:
        print("judge: no prediction has an open task; nothing is sent", file=sys.stderr)
        return []
    client = Judge(url, model, output / "judge.jsonl")
    tasks = ", ".join(sorted({p.task for p in judged}))
    print(
        f"judge: sends prompt, transcript, references and answer of {len(judged)} predictions ({tasks}) to "
        f"{client.url}, but no audio, id or path; verdicts in {output / 'judge.jsonl'} are not asked for again",
        file=sys.stderr,
    )
    try:
        rows = judge_rows(predictions, client, **options)
    finally:
        client.close()
    if client.failures:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in client.failures.most_common())
        print(f"judge: {client.failures.total()} of {len(judged)} answers are not judged: {reasons}", file=sys.stderr)
    return rows


def _write_page(
    evaluation: Path,
    output: Path,
    rows: Sequence[ScoreRow],
    failures: Sequence[FailureCounts],
    predictions: Sequence[Prediction],
) -> str:
    """Writes index.html and returns its path with what it contains.

    The page of `launch.evaluate` keeps its clips; only its score tables are replaced. Without such a page a new one has
    no clips.
    """
    from salmonn_jax.evaluation import report

    page = output / "index.html"
    if report.refresh_scores(evaluation / "index.html", page, rows, failures):
        return f"{page} (new score tables; the rest of the page stays, such as its clips)"
    title = f"Evaluation {evaluation.name}"
    report.write_report(page, rows, predictions, lambda _: None, title=title, notes=(), failures=failures)
    return f"{page} (without clips: launch.evaluate adds them)"


if __name__ == "__main__":
    cli.run(main)
