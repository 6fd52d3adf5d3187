"""Text normalisation, word error rate and accuracy, used by `tasks` and `report`.

Each metric normalises the references and the predictions and returns a score with a 95 % interval.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Sequence

import jiwer
import numpy as np

from salmonn_jax.errors import UserError

RESAMPLES = 1000
SEED = 0
Z_SCORE_95 = 1.959964  # a standard normal variable lies within +-Z_SCORE_95 with a probability of 95 %
# Characters that people and programs write for an apostrophe. NFKC would split some of them into a space and a mark.
APOSTROPHES = (
    "'`\N{ACUTE ACCENT}\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
    "\N{SINGLE HIGH-REVERSED-9 QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}\N{MODIFIER LETTER TURNED COMMA}"
    "\N{PRIME}\N{FULLWIDTH APOSTROPHE}"
)
_WITHOUT_APOSTROPHES = str.maketrans("", "", APOSTROPHES)


@dataclasses.dataclass(frozen=True)
class Score:
    """Value of a metric with its 95 % interval.

    Attributes:
      name: "wer" or "accuracy".
      value: the metric as a fraction; a word error rate may exceed 1.
      count: number of clips.
      low: lower end of the 95 % interval.
      high: upper end of the 95 % interval.
    """

    name: str
    value: float
    count: int
    low: float
    high: float


def normalise(text: str) -> str:
    """Normalises a text for comparison.

    The steps, in this order:

    1. Remove apostrophes, in any of the characters that are written for them: "don't" is one word.
    2. Apply Unicode NFKC, convert to lower case, and remove invisible format characters.
    3. Replace every other punctuation mark, symbol and control character by a space: "twenty-one" is two words.
    4. Collapse runs of white space into one space and strip the ends.

    Letters, marks and digits of every script are kept. Numbers are not spelt out. A sentence in a script without spaces
    counts as one word.
    """
    text = unicodedata.normalize("NFKC", text.translate(_WITHOUT_APOSTROPHES)).lower()
    return " ".join("".join(map(_normalise_character, text)).split())


def is_exact_match(reference: str, prediction: str) -> bool:
    """Returns whether two texts are equal after normalisation."""
    return normalise(reference) == normalise(prediction)


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> Score:
    """Returns the word error rate over all clips.

    The rate is the number of substituted, deleted and inserted words of all clips divided by the number of reference
    words of all clips. An empty prediction counts as the deletion of every reference word. With an empty reference,
    every predicted word counts as an insertion.

    The interval is the percentile bootstrap over clips with a fixed seed. Resamples without a reference word are
    skipped. A single clip gives an interval of zero width.

    Raises:
      UserError: there is no clip, or no reference has a word.
      ValueError: the two sequences differ in length.
    """
    pairs = [(normalise(r), normalise(p)) for r, p in zip(references, predictions, strict=True)]
    _require_clips(pairs)
    word_counts = np.array([len(reference.split()) for reference, _ in pairs])
    if not word_counts.any():
        raise UserError("no reference has a word, so there is no word error rate; check the answers of these clips")
    edit_counts = np.array([_word_edit_distance(reference, prediction) for reference, prediction in pairs])
    low, high = _bootstrap(edit_counts, word_counts)
    return Score("wer", float(edit_counts.sum() / word_counts.sum()), len(pairs), low, high)


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> Score:
    """Returns the fraction of predictions that equal their reference after normalisation, with Wilson's interval.

    Raises:
      UserError: there is no clip, or a reference has no word. An empty prediction would match such a reference.
      ValueError: the two sequences differ in length.
    """
    pairs = list(zip(references, predictions, strict=True))
    _require_clips(pairs)
    for number, (reference, _) in enumerate(pairs, start=1):
        if not normalise(reference):
            raise UserError(f"reference {number} of {len(pairs)} has no word to match; check the answer of that clip")
    value = sum(is_exact_match(reference, prediction) for reference, prediction in pairs) / len(pairs)
    low, high = _wilson(value, len(pairs))
    return Score("accuracy", value, len(pairs), low, high)


def _normalise_character(character: str) -> str:
    """Returns "", " " or the character itself, as the steps of `normalise` say."""
    category = unicodedata.category(character)
    if character in APOSTROPHES or category == "Cf":
        return ""
    return " " if category[0] in "PS" or category == "Cc" else character


def _require_clips(pairs: Sequence[tuple[str, str]]) -> None:
    """Raises UserError if there is no clip."""
    if not pairs:
        raise UserError("no clip to score; check the split and the task")


def _word_edit_distance(reference: str, prediction: str) -> int:
    """Returns the word edit distance between two normalised texts."""
    # Versions of jiwer differ in their treatment of empty texts, so empty texts are not passed to it.
    if not reference or not prediction:
        return len(reference.split()) + len(prediction.split())
    alignment = jiwer.process_words(reference, prediction)
    return alignment.substitutions + alignment.deletions + alignment.insertions


def _bootstrap(edit_counts: np.ndarray, word_counts: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of sum(edit_counts) / sum(word_counts), both int64[clips], over resampled clips."""
    rng = np.random.default_rng(SEED)
    # Resamples are drawn one at a time, because an index array of shape [RESAMPLES, clips] would need too much memory.
    resamples = (rng.integers(len(edit_counts), size=len(edit_counts)) for _ in range(RESAMPLES))
    sums = np.array([(edit_counts[indices].sum(), word_counts[indices].sum()) for indices in resamples])
    sums = sums[sums[:, 1] > 0]
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(low), float(high)


def _wilson(proportion: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a proportion of `count` clips."""
    spread = Z_SCORE_95**2 / count
    centre = (proportion + spread / 2) / (1 + spread)
    half_width = Z_SCORE_95 * math.sqrt(proportion * (1 - proportion) / count + spread / (4 * count)) / (1 + spread)
    # If the proportion is 0 or 1, it equals one end of the interval. Rounding must not move that end past it.
    return max(0.0, min(proportion, centre - half_width)), min(1.0, max(proportion, centre + half_width))
