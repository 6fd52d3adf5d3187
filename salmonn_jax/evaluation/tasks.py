"""Which metric scores which task, and the table of scores: hearing the clip beside hearing silence."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence

from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.evaluation.metrics import Score, accuracy, normalise, word_error_rate
from salmonn_jax.evaluation.predictions import Prediction

# Known splits in the order of the table, each with what it holds; others follow by name.
SPLITS = {
    "test": "new clips of voices and files heard in training",
    "unheard": "voices and files never heard in training",
}
# Stands between the words and the name of the sound in an answer to the task speech_over_sound.
SPEECH_OVER_SOUND_SEPARATOR = " over "


@dataclasses.dataclass(frozen=True)
class TaskMetric:
    """One metric over one part of the answer.

    Attributes:
      metric: "wer" or "accuracy"; a task has each at most once.
      title: says for people what is counted and which way is better.
      compute: from references and predictions to their score.
      part: picks what is compared, from the reference and from the prediction alike.
    """

    name: str
    title: str
    compute: Callable[[Sequence[str], Sequence[str]], Score]
    extract: Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of question: its title for people, and what is scored in its answers."""

    title: str
    metrics: tuple[TaskMetric, ...]


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """One line of the score table.

    Attributes:
      split, task, metric: what was scored.
      audio: the score of the answers to the clip; None if there are none.
      silence: the score of the answers to silence instead of the clip; None if there are none.
    """

    split: str
    task: str
    metric: str
    audio: Score | None
    silence: Score | None


def _whole(text: str) -> str:
    return text


def _words_before_over(text: str) -> str:
    text = normalise(text)
    return text.rpartition(SPEECH_OVER_SOUND_SEPARATOR)[0] if SPEECH_OVER_SOUND_SEPARATOR in text else text


def _name_after_over(text: str) -> str:
    """The name of the sound, or "", which matches no reference."""
    text = normalise(text)
    return text.rpartition(SPEECH_OVER_SOUND_SEPARATOR)[2] if SPEECH_OVER_SOUND_SEPARATOR in text else ""


_WER = TaskMetric("wer", "word error rate, lower is better", word_error_rate, _whole)
_ACCURACY = TaskMetric("accuracy", "right answers, higher is better", accuracy, _whole)

TASKS = {
    "numbers": Task("Spoken numbers, written down", (_WER,)),
    "numbers_to_english": Task("Spoken numbers, put into English", (_WER,)),
    "transcribe": Task("Speech, written down", (_WER,)),
    "translate": Task("Speech, translated", (_WER,)),
    "sound": Task("Which sound it is", (_ACCURACY,)),
    "instrument": Task("Which instrument plays", (_ACCURACY,)),
    "metre": Task("The metre of a tune", (_ACCURACY,)),
    "tune_type": Task("The type of a tune", (_ACCURACY,)),
    "speech_over_sound": Task(
        "Speech over a sound",
        (
            TaskMetric("wer", "word error rate of the speech, lower is better", word_error_rate, _words_before_over),
            TaskMetric("accuracy", "right names of the sound, higher is better", accuracy, _name_after_over),
        ),
    ),
}


def get_task(name: str) -> Task:
    """Looks a task up.

    Raises:
      UserError: there is no such task.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def score(predictions: Sequence[Prediction]) -> list[ScoreRow]:
    """Scores every split, task and metric found, in the order of `SPLITS`, `TASKS` and the task's measures.

    Raises:
      UserError: no prediction; an unknown task; a clip answered twice with the same condition, as in a file that holds
        the answers of two checkpoints; or answers that cannot be scored.
    """
    if not predictions:
        raise UserError("there is no prediction to score; run the evaluation first")
    groups: dict[tuple[str, str, str], list[Prediction]] = collections.defaultdict(list)
    seen = set()
    for prediction in predictions:
        get_task(prediction.task)
        clip = (prediction.source, prediction.split, prediction.task, prediction.id, prediction.condition)
        if clip in seen:
            raise UserError(
                f"clip {prediction.id!r} of {prediction.source!r} has two answers for condition "
                f"{prediction.condition}; score one checkpoint with one set of decoding settings at a time"
            )
        seen.add(clip)
        groups[prediction.split, prediction.task, prediction.condition].append(prediction)
    return [
        ScoreRow(
            split,
            name,
            measure.name,
            _compute_score(measure, groups.get((split, name, "audio"))),
            _compute_score(measure, groups.get((split, name, "silence"))),
        )
        for split in sorted({split for split, _, _ in groups}, key=_split_order)
        for name, task in TASKS.items()
        if (split, name, "audio") in groups or (split, name, "silence") in groups
        for measure in task.metrics
    ]


def format_table(rows: Sequence[ScoreRow]) -> str:
    """The rows as a plain-text table, values in per cent with their 95 % intervals in brackets."""
    cells = [("task", "metric", "split", "clips", "audio", "silence")]
    cells += [
        (row.task, row.metric, row.split, format_clip_count(row), _format_score(row.audio), _format_score(row.silence))
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def to_json(rows: Sequence[ScoreRow]) -> str:
    """The rows as JSON text: a list of objects with the fields of `Row`, values as fractions."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=2, allow_nan=False)


def metric_title(row: ScoreRow) -> str:
    """What a row counts, for people."""
    return next(measure.title for measure in TASKS[row.task].metrics if measure.name == row.metric)


def format_clip_count(row: ScoreRow) -> str:
    """How many clips a row counts; both numbers where an unfinished evaluation has them differ."""
    counts = dict.fromkeys(str(one.count) for one in (row.audio, row.silence) if one)
    return " / ".join(counts)


def format_percent(value: float) -> str:
    """A fraction in per cent with one decimal, as in "12.3 %"."""
    return f"{100 * value:.1f} %"


def format_interval(score: Score) -> str:
    """The 95 % interval in per cent, as in "10.1 to 14.5"."""
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def _compute_score(metric: TaskMetric, group: Sequence[Prediction] | None) -> Score | None:
    if group is None:
        return None
    references = [metric.extract(prediction.reference) for prediction in group]
    predictions = [metric.extract(prediction.prediction) for prediction in group]
    try:
        return metric.compute(references, predictions)
    except UserError as error:
        raise UserError(f"task {group[0].task!r}, split {group[0].split!r}: {error}") from None


def _split_order(split: str) -> tuple[int, str]:
    known = list(SPLITS)
    return (known.index(split) if split in known else len(known), split)


def _format_score(score: Score | None) -> str:
    return "-" if score is None else f"{format_percent(score.value)} [{format_interval(score)}]"
