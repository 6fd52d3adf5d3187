"""Measures of forgetting on numbers whose results are computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from salmonn_jax.forgetting.measurement.items import transitions
from salmonn_jax.forgetting.measurement.matrix import StageMatrix, change_of_rate

# Tasks: text (known before), asr (stage 1), sounds (stage 2), stories (stage 3, the last).
MATRIX = StageMatrix(
    scores=np.array(
        [
            [0.80, 0.10, 0.05, 0.00],
            [0.60, 0.70, 0.15, 0.10],
            [0.70, 0.90, 0.60, 0.30],
            [0.40, 0.50, 0.55, 0.90],
        ]
    ),
    taught=np.array([0, 1, 2, 3]),
    chance=np.array([0.25, 0.0, 0.03, 0.0]),
)


def test_a_matrix_of_four_stages():
    assert MATRIX.average() == pytest.approx((0.40 + 0.50 + 0.55 + 0.90) / 4)
    assert MATRIX.backward_transfer() == pytest.approx((-0.40 - 0.20 - 0.05) / 3)
    assert MATRIX.first_minus_last() == pytest.approx((0.40 + 0.20 + 0.05) / 3)
    np.testing.assert_allclose(MATRIX.forgetting_by_task(), [0.40, 0.40, 0.05, np.nan])
    assert MATRIX.forgetting() == pytest.approx(0.85 / 3)
    assert MATRIX.backward_transfer() >= -MATRIX.forgetting()
    assert MATRIX.forward_transfer() == pytest.approx((0.10 + (0.15 - 0.03) + 0.30) / 3)
    assert MATRIX.forward_transfer([0, 0.1, 0.1, 0.1]) == pytest.approx((0.0 + 0.05 + 0.20) / 3)
    np.testing.assert_allclose(MATRIX.intransigence([0.8, 0.95, 0.7, 0.9]), [0.0, 0.25, 0.1, 0.0])
    np.testing.assert_allclose(MATRIX.retained()[:3], [0.5, 5.0, 11.0])
    assert MATRIX.retained(above_chance=True)[0] == pytest.approx(0.15 / 0.55)
    assert np.isnan(MATRIX.retained()[3])


def test_a_model_that_does_not_change_forgets_nothing():
    same = StageMatrix(np.tile(MATRIX.scores[:1], (3, 1)), np.zeros(4, int), MATRIX.chance)
    assert same.backward_transfer() == same.forgetting() == 0
    np.testing.assert_array_equal(same.retained()[:3], 1)


def test_a_task_that_was_not_measured_is_left_out():
    scores = MATRIX.scores.copy()
    scores[:, 1] = np.nan
    assert StageMatrix(scores, MATRIX.taught, MATRIX.chance).average() == pytest.approx((0.40 + 0.55 + 0.90) / 3)


@pytest.mark.parametrize(("rate", "reference", "change"), [(89.23, 92.53, -0.0357), (36.89, 74.07, -0.5020)])
def test_rates_of_speech_ifeval(rate, reference, change):
    assert change_of_rate(rate, reference) == pytest.approx(change, abs=5e-5)


def test_the_change_of_accuracy_is_learned_minus_forgotten():
    rng = np.random.default_rng(0)
    for _ in range(50):
        before, after = rng.random((2, 37)) < rng.random()
        moved = transitions(before, after)
        assert moved.after - moved.before == pytest.approx(moved.difference)
        low, high = moved.interval()
        assert low <= moved.difference <= high


def test_equal_answers_have_no_transitions():
    answers = np.array([1, 0, 1, 1, 0], bool)
    same = transitions(answers, answers)
    assert (same.forgotten, same.learned, same.p_value) == (0, 0, 1)
    with pytest.raises(ValueError, match="cannot be paired"):
        transitions(answers, answers[:3])


def test_independent_guesses_are_not_forgetting():
    rng = np.random.default_rng(1)
    before, after = rng.random((2, 40_000)) < 0.25
    moved = transitions(before, after)
    assert moved.forgotten == pytest.approx(0.1875, abs=0.01)
    assert moved.above_chance(4) == pytest.approx((0.0, 0.0), abs=0.01)


def test_knowledge_that_is_lost_is_found_among_guesses():
    """60 % are known before and 40 % after; the others are guessed among four, which costs 15 % of the answers.

    The estimate takes luck before and errors after as independent. Here the same questions are guessed twice, so that
    it finds 18 %, where 22.5 % of the answers were lost.
    """
    rng = np.random.default_rng(2)
    known = rng.random(40_000)
    guesses = rng.random((2, 40_000)) < 0.25
    moved = transitions((known < 0.6) | guesses[0], (known < 0.4) | guesses[1])
    assert moved.forgotten == pytest.approx(0.225, abs=0.01)
    assert moved.above_chance(4)[0] == pytest.approx(0.18, abs=0.01)


def test_intervals_cover_the_true_change():
    rng = np.random.default_rng(3)
    covered, runs, count = 0, 1500, 200
    for _ in range(runs):
        base = rng.random(count)
        before = base < 0.7
        after = np.where(rng.random(count) < 0.1, ~before, before)
        low, high = transitions(before, after).interval()
        covered += low <= -0.7 * 0.1 + 0.3 * 0.1 <= high
    assert covered / runs >= 0.93
