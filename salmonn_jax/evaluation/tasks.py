"""Metrics of each task, and the score table that `launch.evaluate` prints and `report` shows.

Each row of the table compares the condition "audio" (the model gets the clip) with the condition "silence" (the model
gets zeros instead of the clip).
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence

from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.evaluation.metrics import Score, accuracy, normalise, word_error_rate
from salmonn_jax.evaluation.predictions import Prediction

# Descriptions of the known splits, in the order of the table. Other splits follow in alphabetical order.
SPLITS = {
    "test": "new clips from voices and files used in training",
    "unheard": "clips from voices and files not used in training",
}
# Separates the transcript from the name of the sound in the answers of the task speech_over_sound.
SPEECH_OVER_SOUND_SEPARATOR = " over "


@dataclasses.dataclass(frozen=True)
class TaskMetric:
    """Metric that compares one part of the answers of a task.

    Attributes:
      name: "wer" or "accuracy"; a task has each at most once.
      title: human-readable name, which also says whether higher or lower is better.
      compute: returns the score of references and predictions.
      extract: returns the part of a text that is compared. It is applied to references and predictions.
    """

    name: str
    title: str
    compute: Callable[[Sequence[str], Sequence[str]], Score]
    extract: Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Task:
    """Evaluation task: its human-readable title and its metrics."""

    title: str
    metrics: tuple[TaskMetric, ...]


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """Row of the score table.

    Attributes:
      split: name of the split.
      task: name of the task.
      metric: name of the metric.
      audio: score of the predictions with condition "audio"; None if there are none.
      silence: score of the predictions with condition "silence"; None if there are none.
    """

    split: str
    task: str
    metric: str
    audio: Score | None
    silence: Score | None


def _full_text(text: str) -> str:
    return text


def _words_before_over(text: str) -> str:
    """Returns the transcript of a speech_over_sound answer, or the full text if it has no separator."""
    text = normalise(text)
    return text.rpartition(SPEECH_OVER_SOUND_SEPARATOR)[0] if SPEECH_OVER_SOUND_SEPARATOR in text else text


def _name_after_over(text: str) -> str:
    """Returns the name of the sound of a speech_over_sound answer, or "", which matches no reference."""
    text = normalise(text)
    return text.rpartition(SPEECH_OVER_SOUND_SEPARATOR)[2] if SPEECH_OVER_SOUND_SEPARATOR in text else ""


_WER = TaskMetric("wer", "word error rate, lower is better", word_error_rate, _full_text)
_ACCURACY = TaskMetric("accuracy", "correct answers, higher is better", accuracy, _full_text)

TASKS = {
    "numbers": Task("Transcription of spoken numbers", (_WER,)),
    "numbers_to_english": Task("Translation of spoken numbers into English", (_WER,)),
    "transcribe": Task("Speech transcription", (_WER,)),
    "translate": Task("Speech translation", (_WER,)),
    "sound": Task("Sound recognition", (_ACCURACY,)),
    "instrument": Task("Instrument recognition", (_ACCURACY,)),
    "metre": Task("Metre of a tune", (_ACCURACY,)),
    "tune_type": Task("Type of a tune", (_ACCURACY,)),
    "speech_over_sound": Task(
        "Speech over a sound",
        (
            TaskMetric("wer", "word error rate of the speech, lower is better", word_error_rate, _words_before_over),
            TaskMetric("accuracy", "correct names of the sound, higher is better", accuracy, _name_after_over),
        ),
    ),
}


def get_task(name: str) -> Task:
    """Returns the task with this name.

    Raises:
      UserError: the task is unknown.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def score(predictions: Sequence[Prediction]) -> list[ScoreRow]:
    """Scores every combination of split, task and metric that has predictions.

    The rows are ordered by `SPLITS`, then by `TASKS`, then by the metrics of the task.

    Raises:
      UserError: there is no prediction, a task is unknown, a metric cannot be computed, or an example has two
        predictions with the same condition, as in a file that holds the predictions of two checkpoints.
    """
    if not predictions:
        raise UserError("no prediction to score; run the evaluation first")
    groups: dict[tuple[str, str, str], list[Prediction]] = collections.defaultdict(list)
    seen = set()
    for prediction in predictions:
        get_task(prediction.task)
        example = (prediction.source, prediction.split, prediction.task, prediction.id, prediction.condition)
        if example in seen:
            raise UserError(
                f"clip {prediction.id!r} of {prediction.source!r} has two answers for condition "
                f"{prediction.condition}; score one checkpoint with one set of decoding settings at a time"
            )
        seen.add(example)
        groups[prediction.split, prediction.task, prediction.condition].append(prediction)
    return [
        ScoreRow(
            split,
            name,
            metric.name,
            _compute_score(metric, groups.get((split, name, "audio"))),
            _compute_score(metric, groups.get((split, name, "silence"))),
        )
        for split in sorted({split for split, _, _ in groups}, key=_split_order)
        for name, task in TASKS.items()
        if (split, name, "audio") in groups or (split, name, "silence") in groups
        for metric in task.metrics
    ]


def format_table(rows: Sequence[ScoreRow]) -> str:
    """Formats the rows as a plain-text table with values in per cent and 95 % intervals in brackets."""
    cells = [("task", "metric", "split", "clips", "audio", "silence")]
    cells += [
        (row.task, row.metric, row.split, format_clip_count(row), _format_score(row.audio), _format_score(row.silence))
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def to_json(rows: Sequence[ScoreRow]) -> str:
    """Serialises the rows as a JSON list of objects with the fields of `ScoreRow`. Values are fractions."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=2, allow_nan=False)


def metric_title(row: ScoreRow) -> str:
    """Returns the human-readable title of the metric of a row."""
    return next(metric.title for metric in TASKS[row.task].metrics if metric.name == row.metric)


def format_clip_count(row: ScoreRow) -> str:
    """Formats the number of clips of a row, as "12", or as "12 / 8" if the two conditions have different numbers."""
    counts = dict.fromkeys(str(score.count) for score in (row.audio, row.silence) if score)
    return " / ".join(counts)


def format_percent(value: float) -> str:
    """Formats a fraction in per cent with one decimal, as "12.3 %"."""
    return f"{100 * value:.1f} %"


def format_interval(score: Score) -> str:
    """Formats the 95 % interval in per cent, as "10.1 to 14.5"."""
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def _compute_score(metric: TaskMetric, group: Sequence[Prediction] | None) -> Score | None:
    """Returns the score of the predictions of one split, task and condition, or None if there are none."""
    if group is None:
        return None
    references = [metric.extract(prediction.references[0]) for prediction in group]
    predictions = [metric.extract(prediction.prediction) for prediction in group]
    try:
        return metric.compute(references, predictions)
    except UserError as error:
        raise UserError(f"task {group[0].task!r}, split {group[0].split!r}: {error}") from None


def _split_order(split: str) -> tuple[int, str]:
    """Returns a sort key: known splits in the order of `SPLITS`, then the other splits in alphabetical order."""
    known = list(SPLITS)
    return (known.index(split) if split in known else len(known), split)


def _format_score(score: Score | None) -> str:
    return "-" if score is None else f"{format_percent(score.value)} [{format_interval(score)}]"
