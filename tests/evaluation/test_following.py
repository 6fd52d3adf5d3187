"""Tests of the predicates of the following rate and of the diversity, on hand-labelled answers."""

from __future__ import annotations

import pytest

from salmonn_jax.evaluation.metrics import diversity
from salmonn_jax.evaluation.metrics.words import following_rate
from salmonn_jax.evaluation.scoring.rows import compute_score
from salmonn_jax.evaluation.text.following import NOT_TRANSCRIPT, STORY
from tests.evaluation.answers import make_prediction

TRANSCRIPT = "when did the second world war end in europe"
STORY_TEXT = (
    "It was a rainy night, and the old dog lay by the door. Far away a train called, and then another. The girl put "
    "down her book, listened to the wind, and knew that her brother would come home tomorrow."
)
SPOKEN = {
    "It ended in May 1945.": True,
    "1945": True,
    "In Europe it was over in 1945, after Germany had surrendered.": True,
    "The second world war ended in Europe on the eighth of May in 1945": True,
    "the war": True,
    "I do not know.": True,
    "Yes": True,
    "它于1945年结束": True,
    "when did the second world war end in europe": False,
    "When did the Second World War end in Europe?": False,
    "when did the second war end in europe": False,
    "When did the 2nd world war end in Europe": False,
    "when does the second world war end in europe today": False,
    "The speaker says: when did the second world war end in Europe": False,
    "": False,
    "   ": False,
    "?!": False,
    "...": False,
}
STORIES = {
    STORY_TEXT: True,
    STORY_TEXT * 3: True,
    "word " * 30: True,  # diversity, not the following rate, tells a loop from a story
    "word " * 29: False,
    "A dog barks.": False,
    "Rain falls and a train passes.": False,
    "": False,
    f"{TRANSCRIPT} " * 1: False,
}


@pytest.mark.parametrize(("answer", "follows"), SPOKEN.items())
def test_an_answer_does_not_repeat_the_transcript(answer, follows):
    prediction = make_prediction("speech_query", "1945", answer, transcript=TRANSCRIPT)
    assert NOT_TRANSCRIPT.holds(prediction) is follows


@pytest.mark.parametrize(("answer", "follows"), SPOKEN.items())
def test_an_answer_does_not_repeat_the_question(answer, follows):
    prediction = make_prediction("slot_filling", "1945", answer, question=TRANSCRIPT)
    assert NOT_TRANSCRIPT.holds(prediction) is follows


def test_without_a_transcript_every_answer_with_a_word_follows():
    assert NOT_TRANSCRIPT.holds(make_prediction("speech_query", "1945", TRANSCRIPT))
    assert not NOT_TRANSCRIPT.holds(make_prediction("speech_query", "1945", "-"))


@pytest.mark.parametrize(("answer", "follows"), STORIES.items())
def test_a_story_has_thirty_words(answer, follows):
    assert STORY.holds(make_prediction("audio_story_telling", "x", answer, transcript=TRANSCRIPT)) is follows


def test_a_long_transcript_is_no_story():
    assert not STORY.holds(make_prediction("audio_story_telling", "x", STORY_TEXT, transcript=STORY_TEXT.upper()))


@pytest.mark.parametrize(
    ("answer", "different"),
    [("A dog, a DOG!", 2), ("", 0), ("one two three", 3), ("don't do'nt dont", 1), ("?", 0), ("6/8 8/6", 2)],
)
def test_diversity_counts_different_words(answer, different):
    prediction = make_prediction("audio_story_telling", "x", answer)
    assert compute_score(diversity(), [prediction]).value == different


def test_rates_are_means_over_all_answers():
    answers = [STORY_TEXT, "A dog barks.", ""]
    predictions = [make_prediction("audio_story_telling", "x", text, id=text) for text in answers]
    assert compute_score(following_rate(STORY), predictions).value == pytest.approx(1 / 3)
    assert compute_score(diversity(), predictions).value == pytest.approx((33 + 3 + 0) / 3)
    assert following_rate(STORY).settings == {"predicate": "story@1"}
