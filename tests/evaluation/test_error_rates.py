"""Tests of error rates and accuracies against values computed by hand, and of their intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest

from salmonn_jax.evaluation.metrics import accuracy as accuracy_metric
from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.scoring.rows import compute_score
from tests.evaluation.answers import make_pairs


def word_error_rate(references, predictions):
    return compute_score(wer(), make_pairs("transcribe", references, predictions))


def accuracy(references, predictions):
    return compute_score(accuracy_metric(), make_pairs("sound", references, predictions))


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ("one two three four", "One, two; three four.", 0.0),
        ("one two three four", "one too three four", 1 / 4),
        ("one two three four", "one three four", 1 / 4),
        ("one two three four", "one two and three four", 1 / 4),
        ("one two three four", "two three four five", 2 / 4),
        ("one", "one one one one", 3.0),
        ("one two", "", 1.0),
        ("one two", "?!", 1.0),
        ("добрый день", "Добрый вечер", 1 / 2),
        ("शुभ प्रभात मित्र", "शुभ प्रभात", 1 / 3),
    ],
)
def test_word_error_rate_of_one_clip(reference, prediction, expected):
    score = word_error_rate([reference], [prediction])
    assert (score.name, score.count) == ("wer", 1)
    assert score.value == score.low == score.high == pytest.approx(expected)


def test_word_error_rate_weights_clips_by_their_word_count():
    # The first clip has 1 edit in 1 word, the second 0 edits in 3 words. The mean of the two rates would be 1/2.
    assert word_error_rate(["a", "b c d"], ["x", "b c d"]).value == pytest.approx(1 / 4)


def test_words_predicted_for_an_empty_reference_are_insertions():
    score = word_error_rate(["", "one two", "..."], ["um er", "one two", ""])
    assert score.value == pytest.approx(2 / 2)
    assert (score.count, score.unscorable) == (2, 1)
    assert np.isfinite([score.low, score.high]).all()


def test_bootstrap_interval_contains_the_value_is_reproducible_and_narrows_with_more_clips():
    references, predictions = ["a b c d"] * 40, ["a b c d", "a b c x", "a", "a b c d"] * 10
    score = word_error_rate(references, predictions)
    assert score.value == pytest.approx(4 / 16)
    assert 0 < score.low < score.value < score.high < 1
    assert score == word_error_rate(references, predictions)
    # The per-clip rates 0, 1/4, 3/4, 0 have a standard deviation of 0.306. The interval is 2 x 1.96 x 0.306 / sqrt(n)
    # wide.
    assert score.high - score.low == pytest.approx(3.92 * 0.306 / np.sqrt(40), rel=0.1)
    wider = word_error_rate(references[:12], predictions[:12])
    assert wider.high - wider.low > 1.4 * (score.high - score.low)


def test_bootstrap_resamples_edits_and_words_of_a_clip_together():
    # Half of the clips have 1 word and 1 edit; the other half have 9 words and no edit. In 95 % of the resamples of 40
    # clips, k = 20 +- 6.2 clips are of the first kind. The rate of a resample is k / (k + 9 (40 - k)).
    score = word_error_rate(["a", "b c d e f g h i j"] * 20, ["x", "b c d e f g h i j"] * 20)
    assert score.value == pytest.approx(0.1)
    assert (score.low, score.high) == pytest.approx((14 / (14 + 9 * 26), 26 / (26 + 9 * 14)), abs=0.012)


def test_word_error_rate_of_many_clips_is_fast():
    start = time.perf_counter()
    word_error_rate(["one two three four five"] * 5000, ["one two free four"] * 5000)
    assert time.perf_counter() - start < 5


def test_accuracy_is_exact_match_after_normalisation():
    score = accuracy(["Rain", "dog", "6/8", "jig"], ["rain.", "a dog", "6/8", ""])
    assert (score.name, score.value, score.count) == ("accuracy", 1 / 2, 4)


@pytest.mark.parametrize(
    # Published values of Wilson's interval: Newcombe (1998) lists 81 of 263, 15 of 148, 0 of 20 and 1 of 29.
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(right, count, low, high):
    score = accuracy(["yes"] * count, ["yes"] * right + ["no"] * (count - right))
    assert (score.low, score.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30, 1000])
def test_wilson_interval_contains_accuracies_of_0_and_1(count):
    zero, one = accuracy(["yes"] * count, ["no"] * count), accuracy(["yes"] * count, ["yes"] * count)
    assert zero.low <= zero.value == 0.0 < zero.high < 1
    assert 0 < one.low < one.value == 1.0 <= one.high


def test_a_reference_without_words_is_unscorable_and_the_others_are_scored():
    score = word_error_rate(["?!", "one two"], ["one", "one"])
    assert (score.value, score.count, score.unscorable) == (1 / 2, 1, 1)
    score = accuracy(["rain", "-"], ["rain", ""])
    assert (score.value, score.count, score.unscorable) == (1.0, 1, 1)


def test_a_metric_without_a_scorable_reference_is_not_computed():
    assert word_error_rate(["", "-"], ["", "a"]).notes == (
        "not computed: no reference has a word; check the answers of these clips",
    )
    score = accuracy(["-"], [""])
    assert (score.value, score.count, score.unscorable) == (None, 0, 1)
    assert score.notes == ("not computed: no reference can be scored",)


def test_of_several_references_the_nearest_counts():
    predictions = make_pairs("transcribe", [["a b c d", "a b"]], ["a b"])
    assert compute_score(wer(), predictions).value == 0.0
    assert compute_score(accuracy_metric(), predictions).value == 1.0


def test_word_error_rate_records_its_edits():
    details = word_error_rate(["a b c d", "e"], ["a x c", "e f g"]).details
    assert details == {"substitutions": 1, "deletions": 1, "insertions": 2, "reference_units": 5}
