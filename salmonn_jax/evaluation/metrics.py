"""Word error rate and accuracy, each with a 95 % interval, on texts that are normalised the same way."""

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
Z_SCORE_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution
APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"


@dataclasses.dataclass(frozen=True)
class Score:
    """A measured number.

    Attributes:
      name: "wer" or "accuracy".
      value: a fraction; a word error rate may exceed 1.
      count: number of clips.
      low, high: ends of the 95 % interval.
    """

    name: str
    value: float
    count: int
    low: float
    high: float


def normalise(text: str) -> str:
    """The form in which texts are compared.

    In this order: Unicode NFKC; lower case; apostrophes and invisible format characters removed ("don't" is one word);
    every other punctuation mark, symbol or control character made a space ("twenty-one" is two words); runs of white
    space made one space, none at the ends. Letters, marks and digits of every script stay as they are: numbers are not
    spelt out, and a sentence in a script without spaces counts as one word.
    """
    return " ".join("".join(map(_normalise_character, unicodedata.normalize("NFKC", text).lower())).split())


def is_exact_match(reference: str, prediction: str) -> bool:
    """Whether two texts are equal after normalisation."""
    return normalise(reference) == normalise(prediction)


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> Score:
    """Substituted, deleted and inserted words of all clips over the reference words of all clips.

    An empty prediction deletes every word of its reference. Against an empty reference every predicted word is an
    insertion: it adds errors and no reference words. The interval is the percentile bootstrap over clips with a fixed
    seed; a resample without a reference word is left out, and a single clip gives an interval of no width.

    Raises:
      UserError: there is no clip, or no reference has a word.
      ValueError: the two lists differ in length.
    """
    pairs = [(normalise(r), normalise(p)) for r, p in zip(references, predictions, strict=True)]
    _require_clips(pairs)
    words = np.array([len(reference.split()) for reference, _ in pairs])
    if not words.any():
        raise UserError("no reference has a word, so there is no word error rate; check the answers of these clips")
    edits = np.array([_word_edit_distance(reference, prediction) for reference, prediction in pairs])
    low, high = _bootstrap(edits, words)
    return Score("wer", float(edits.sum() / words.sum()), len(pairs), low, high)


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> Score:
    """The share of predictions equal to their reference after normalisation, with Wilson's interval.

    Raises:
      UserError: there is no clip, or a reference has no word, which an empty prediction would match.
      ValueError: the two lists differ in length.
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
    category = unicodedata.category(character)
    if character in APOSTROPHES or category == "Cf":
        return ""
    return " " if category[0] in "PS" or category == "Cc" else character


def _require_clips(pairs: Sequence[tuple[str, str]]) -> None:
    if not pairs:
        raise UserError("there is no clip to score; check the split and the task")


def _word_edit_distance(reference: str, prediction: str) -> int:
    """Word edits between two normalised texts."""
    # jiwer's own treatment of empty texts has changed between its versions.
    if not reference or not prediction:
        return len(reference.split()) + len(prediction.split())
    words = jiwer.process_words(reference, prediction)
    return words.substitutions + words.deletions + words.insertions


def _bootstrap(edits: np.ndarray, words: np.ndarray) -> tuple[float, float]:
    """95 % interval of sum(edits) / sum(words), both int64[clips], over resampled clips."""
    rng = np.random.default_rng(SEED)
    # One resample at a time: all at once would take RESAMPLES x clips numbers of memory.
    draws = (rng.integers(len(edits), size=len(edits)) for _ in range(RESAMPLES))
    sums = np.array([(edits[draw].sum(), words[draw].sum()) for draw in draws])
    sums = sums[sums[:, 1] > 0]
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(low), float(high)


def _wilson(value: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share `value` of `count` clips."""
    spread = Z_SCORE_95**2 / count
    centre = (value + spread / 2) / (1 + spread)
    half = Z_SCORE_95 * math.sqrt(value * (1 - value) / count + spread / (4 * count)) / (1 + spread)
    # At 0 and at 1 one end is the value itself, but for rounding.
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))
