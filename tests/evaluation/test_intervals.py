"""Tests of confidence intervals: their coverage, blocks of speakers, and the paired comparison of two runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation import scoring
from salmonn_jax.evaluation.metrics.base import ratio
from salmonn_jax.evaluation.scoring import intervals
from salmonn_jax.evaluation.scoring.agreement import agreement, format_agreement
from salmonn_jax.evaluation.scoring.compare import compare, format_comparisons
from salmonn_jax.evaluation.scoring.intervals import bootstrap, paired_bootstrap, wilson
from tests.evaluation.answers import make_pairs, make_prediction


def error_counts(rng, num_clips: int, rate) -> np.ndarray:
    """Returns edits and words of clips with 5 to 24 words, float64[clips, 2]."""
    words = rng.integers(5, 25, num_clips)
    return np.stack([rng.binomial(words, rate), words], axis=1).astype(float)


@pytest.mark.slow
def test_intervals_contain_the_true_value_in_95_per_cent_of_data_sets(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    rng = np.random.default_rng(1)
    hits = {"independent": 0, "wilson": 0, "speakers": 0, "ignored speakers": 0}
    for _ in range(500):
        low, high = bootstrap(error_counts(rng, 200, 0.1), range(200), ratio)
        hits["independent"] += low <= 0.1 <= high
        low, high = wilson(rng.binomial(200, 0.7) / 200, 200)
        hits["wilson"] += low <= 0.7 <= high
        # Each of 60 speakers has an error rate of their own, 0.1 on average.
        rates, blocks = rng.beta(2, 18, 60).repeat(4), np.arange(60).repeat(4)
        statistics = error_counts(rng, 240, rates)
        low, high = bootstrap(statistics, list(blocks), ratio)
        hits["speakers"] += low <= 0.1 <= high
        low, high = bootstrap(statistics, range(240), ratio)
        hits["ignored speakers"] += low <= 0.1 <= high
    coverage = {name: count / 500 for name, count in hits.items()}
    assert all(0.92 <= coverage[name] <= 0.98 for name in ("independent", "wilson", "speakers")), coverage
    assert coverage["ignored speakers"] < 0.85


def test_clips_of_a_speaker_are_resampled_together():
    references, answers = ["a b c d"] * 40, (["a b c d"] * 10 + ["x y z w"] * 10) * 2
    speakers = [{"speaker": str(number // 10)} for number in range(40)]
    alone = scoring.score(make_pairs("asr", references, answers))[0].audio
    blocked = scoring.score(
        [
            make_prediction("asr", r, a, id=str(i), group=group)
            for i, (r, a, group) in enumerate(zip(references, answers, speakers, strict=True))
        ]
    )[0].audio
    assert (alone.value, blocked.value) == (0.5, 0.5)
    assert blocked.high - blocked.low > 2 * (alone.high - alone.low)
    assert blocked.notes == ("interval over 4 speakers or clips",)


def test_an_accuracy_of_one_over_few_speakers_has_an_interval_of_some_width():
    predictions = [make_prediction("sound", "rain", "rain", id=str(i), group={"clip": str(i % 5)}) for i in range(50)]
    score = scoring.score(predictions)[0].audio
    assert (score.low, score.high) == pytest.approx(wilson(1.0, 5))


def test_clips_of_a_single_speaker_have_no_interval():
    predictions = [make_prediction("sound", "rain", "rain", id=str(i), group={"speaker": "1"}) for i in range(5)]
    score = scoring.score(predictions)[0].audio
    assert (score.value, score.low, score.high) == (1.0, None, None)
    assert score.notes == ("no interval: all clips are of one speaker or clip",)
    worse = [dataclasses.replace(p, prediction="dog") for p in predictions]
    (comparison,) = compare(predictions, worse)
    assert (comparison.difference, comparison.low, comparison.p_value) == (1.0, None, None)


def test_paired_bootstrap_sees_a_small_difference_that_single_intervals_do_not():
    rng = np.random.default_rng(0)
    first = error_counts(rng, 400, 0.2)
    second = first.copy()
    second[:40, 0] = np.maximum(0, second[:40, 0] - 1)
    low, high, p_value = paired_bootstrap(first, second, range(400), ratio)
    assert low < high < 0 and p_value <= 0.01
    assert bootstrap(first, range(400), ratio)[0] < ratio(second.sum(axis=0))
    assert paired_bootstrap(first, first, range(400), ratio) == (0.0, 0.0, 1.0)


def test_runs_are_compared_on_their_common_examples():
    ours = make_pairs("sound", ["rain"] * 60, ["rain"] * 50 + ["dog"] * 10)
    theirs = make_pairs("sound", ["rain"] * 50 + ["wind"] * 5, ["rain"] * 30 + ["dog"] * 20 + ["wind"] * 5)
    (comparison,) = compare(ours, theirs)
    assert (comparison.count, comparison.left_out) == (50, 10)  # five are missing, five have another reference
    assert (comparison.value, comparison.other_value) == (1.0, 0.6)
    assert comparison.difference == pytest.approx(0.4)
    assert 0.2 < comparison.low < 0.4 < comparison.high < 0.6 and comparison.p_value == pytest.approx(0.001)
    (reversed_comparison,) = compare(theirs, ours)
    assert reversed_comparison.difference == pytest.approx(-0.4)
    table = format_comparisons([comparison], "here", "there").splitlines()
    assert table[0].split() == [
        "task",
        "metric",
        "split",
        "condition",
        "clips",
        "left",
        "out",
        "here",
        "there",
        "difference",
        "p",
    ]
    assert table[2].startswith("sound  accuracy  test   audio      50     10        100.0 %  60.0 %  +40.0 [+")


def test_agreement_of_two_runs():
    """The third text differs, the fourth clip has an error in one run, and only one run has the fifth."""
    ours = [
        make_prediction("sound", "rain", t, id=str(i), score=-0.5) for i, t in enumerate(["rain", "a", "b", "", "e"])
    ]
    theirs = [
        make_prediction("sound", "rain", "rain", id="0", score=-0.5),
        make_prediction("sound", "other reference", "a", id="1", score=-0.7),
        make_prediction("sound", "rain", "c", id="2", score=-1.5),
        make_prediction("sound", "rain", "", id="3", error="no such file"),
    ]
    (row,) = agreement(ours, theirs)
    assert (row.task, row.split, row.condition, row.count, row.identical) == ("sound", "test", "audio", 3, 2)
    gaps = (row.score_gap, row.largest_score_gap, row.identical_score_gap)
    assert gaps == pytest.approx((0.4, 1.0, 0.2))
    (reverse,) = agreement(theirs, ours)
    assert reverse == row
    assert format_agreement([row]).endswith("audio      3      2 (66.7 %)       0.4        1        0.2")
    assert agreement(ours[3:], theirs) == [] and format_agreement([]) == ""


def test_runs_without_a_common_example_raise_user_error():
    with pytest.raises(UserError, match="no example in common; the other run has the tasks metre"):
        compare([make_prediction("sound", "rain", "rain")], [make_prediction("metre", "6/8", "6/8")])


def test_a_comparison_of_bleu_uses_the_counts_of_all_clips():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = ["a dog barks at the old cat", "rain falls on the roof of a house"] * 10
    worse = [text.replace("dog", "wolf") for text in texts]
    ours, theirs = (make_pairs("translation_en2de", texts, answers) for answers in (texts, worse))
    (comparison,) = compare(ours, theirs)
    assert comparison.value == pytest.approx(100.0)
    assert comparison.other_value == pytest.approx(sacrebleu.corpus_bleu(worse, [texts]).score)
    assert comparison.low > 0
