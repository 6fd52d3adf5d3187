"""Tests of text normalisation and of the metrics, against values computed by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.metrics import accuracy, is_exact_match, normalise, word_error_rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,\tWORLD!\n", "hello world"),
        ("Don't; don\N{RIGHT SINGLE QUOTATION MARK}t", "dont dont"),
        *((f"don{apostrophe}t", "dont") for apostrophe in "'`\u00b4\u2018\u2019\u201b\u02bc\u02bb\u2032\uff07\uff40"),
        ("\u0149", "n"),  # NFKC makes an apostrophe and a letter of it
        ("twenty-one", "twenty one"),
        ("6/8", "6 8"),
        ("$5 + 5°", "5 5"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}\N{LATIN SMALL LIGATURE FI}", "afi"),
        ("e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("«Добрый ДЕНЬ»", "добрый день"),
        ("ΟΔΟΣ", "οδος"),
        # The vowel signs of Devanagari are marks, not letters, and belong to the word.
        ("हिन्दी।", "हिन्दी"),
        ("مرحبا، كيف؟", "مرحبا كيف"),
        ("你好。世界。", "你好 世界"),
        ("soft\N{SOFT HYPHEN}ware\N{ZERO WIDTH NO-BREAK SPACE}", "software"),
        ("a\x00b", "a b"),
        ("...", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_exact_match_compares_normalised_texts():
    assert is_exact_match("Church organ", "church  organ.")
    assert not is_exact_match("organ", "organs")


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
    assert score.count == 3
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


@pytest.mark.parametrize("metric", [word_error_rate, accuracy])
def test_scoring_no_clip_raises_user_error(metric):
    with pytest.raises(UserError, match="no clip"):
        metric([], [])


@pytest.mark.parametrize("metric", [word_error_rate, accuracy])
def test_sequences_of_different_length_raise_value_error(metric):
    with pytest.raises(ValueError):
        metric(["a", "b"], ["a"])


def test_references_without_words_raise_user_error():
    with pytest.raises(UserError, match="no reference has a word"):
        word_error_rate(["", "-"], ["", "a"])
    with pytest.raises(UserError, match="reference 2 of 2"):
        accuracy(["rain", "-"], ["rain", ""])
