"""Predicates that say whether an answer follows the form of its instruction, for the following rate of the paper.

The paper (arXiv 2310.13289, section 4) does not say how it decides this. Each predicate has a name with a version,
which the scores record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jiwer

from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.text.normalizers import normalize_plain

MIN_STORY_WORDS = 30
MIN_DISTANCE = 0.5  # edited words per word of the longer text


@dataclasses.dataclass(frozen=True)
class Predicate:
    """Named rule on a prediction.

    Attributes:
      name: name with version, such as "not-transcript@1".
      description: what the answer must be, for the report.
      holds: returns whether a prediction follows its instruction.
    """

    name: str
    description: str
    holds: Callable[[Prediction], bool]


def _repeats(text: str, other: str) -> bool:
    """Returns whether two texts are the same up to `MIN_DISTANCE`. A text without words repeats nothing."""
    words, other_words = normalize_plain(text).split(), normalize_plain(other).split()
    if not words or not other_words:
        return False
    alignment = jiwer.process_words(" ".join(other_words), " ".join(words))
    edits = alignment.substitutions + alignment.deletions + alignment.insertions
    return edits < MIN_DISTANCE * max(len(words), len(other_words))


def answers_instead_of_repeating(prediction: Prediction) -> bool:
    """Returns whether the answer has a word and does not repeat the transcript or the question."""
    spoken = (prediction.transcript, prediction.question)
    return bool(normalize_plain(prediction.prediction)) and not any(_repeats(prediction.prediction, s) for s in spoken)


def tells_a_story(prediction: Prediction) -> bool:
    """Returns whether the answer has at least `MIN_STORY_WORDS` words and does not repeat the transcript."""
    return (
        len(normalize_plain(prediction.prediction).split()) >= MIN_STORY_WORDS
        and answers_instead_of_repeating(prediction)
    )  # fmt: skip


NOT_TRANSCRIPT = Predicate(
    "not-transcript@1", "has a word and does not repeat the transcript or the question", answers_instead_of_repeating
)
STORY = Predicate("story@1", f"has at least {MIN_STORY_WORDS} words and does not repeat the transcript", tells_a_story)
