"""Counts of answers that went wrong in a known way: errors, empty answers, cut answers, loops, unparseable answers."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.scoring.rows import ScoreRow, group_predictions

# Above this ratio of its size to its compressed size, Whisper takes a text for a loop (openai/whisper, transcribe.py).
MAX_COMPRESSION_RATIO = 2.4


@dataclasses.dataclass(frozen=True)
class FailureCounts:
    """Number of answers of each kind in a group and condition. An answer may be of several kinds.

    Attributes:
      split: name of the split.
      part: as in `ScoreRow`.
      task: name of the task.
      condition: condition of the predictions.
      clips: number of all answers.
      errors: answers that are missing because of an error.
      empty: answers without a character, without those that have an error.
      cut: answers that reached the maximum number of tokens.
      loops: answers that repeat themselves (see `MAX_COMPRESSION_RATIO`).
      unparseable: answers that the parser of the protocol cannot read.
    """

    split: str
    part: str
    task: str
    condition: str
    clips: int
    errors: int
    empty: int
    cut: int
    loops: int
    unparseable: int


def count_failures(predictions: Sequence[Prediction], rows: Sequence[ScoreRow], by: str = "") -> list[FailureCounts]:
    """Returns the counts of each group and condition.

    Args:
      predictions: all predictions, those with an error included.
      rows: scores of the predictions.
      by: property that divides the rows, as in `score`.
    """
    return [
        FailureCounts(
            split=group.split,
            part=group.part,
            task=group.task,
            condition=condition,
            clips=len(members),
            errors=sum(bool(p.error) for p in members),
            empty=sum(not p.error and not p.prediction.strip() for p in members),
            cut=sum(p.finish_reason == "length" for p in members),
            loops=sum(is_loop(p.prediction) for p in members),
            unparseable=max(
                (
                    scored.unparseable
                    for row in rows
                    if (row.split, row.part, row.task) == (group.split, group.part, group.task)
                    and (scored := getattr(row, condition))
                ),
                default=0,
            ),
        )
        for group, by_condition in group_predictions(predictions, by).items()
        for condition, members in by_condition.items()
    ]


def is_loop(text: str) -> bool:
    """Returns whether a text repeats itself so much that it compresses by more than `MAX_COMPRESSION_RATIO`."""
    content = text.encode(errors="replace")
    return len(content) > MAX_COMPRESSION_RATIO * len(zlib.compress(content))
