"""Tests of the parsers of closed answers, on tables of answers and what they say."""

from __future__ import annotations

import pytest

from salmonn_jax.evaluation.metrics import accuracy, contains_accuracy, yes_no_accuracy
from salmonn_jax.evaluation.scoring.rows import compute_score
from salmonn_jax.evaluation.tasks.emotion_recognition import LABELS
from salmonn_jax.evaluation.text.parsers import parse_choice, parse_keywords, parse_label, parse_yes_no
from tests.evaluation.answers import make_prediction

CHOICES = ("Man", "Woman", "Child", "Robot")
ANSWERS = {
    # Letters.
    "B": 1, "B.": 1, "(B)": 1, "b": 1, "[b]": 1, "**B**": 1, "A": 0, "a": 0, "D)": 3, "B: Woman": 1, "(B) Woman": 1,
    "B. woman": 1, "B) a woman": 1, "The answer is B": 1, "The answer is B.": 1, "Answer: (c)": 2, "option d": 3,
    "the answer is: a.": 0, "The correct choice is \"C\".": 2, "I think it is B because of the pitch": 1, "E": None,
    "Z.": None, "A or B": None, "B or C": None, "(A) or (B)": None, "answer: A": 0, "A, B": None, "C/A": None,
    # Texts.
    "Woman": 1, "woman.": 1, "WOMAN!": 1, "The speaker is a woman.": 1, "A woman is speaking.": 1, "a man": 0,
    "A man": 0, "Both a man and a woman": None, "It's a robot, I believe": 3, "women": None, "childlike": None,
    "Not a man, a woman.": 1, "not a woman": None, "man man man": 0, "I am not sure": None,
    # Letter and text.
    "(B) Man": None, "B. Woman, not C": None, "A. Man": 0, "The answer is A man": 0,
    # Nothing.
    "": None, "   ": None, "?!": None, "I cannot tell.": None, "42": None, "他是男人": None,
}  # fmt: skip


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items())
def test_choices(answer, expected):
    assert parse_choice(answer, CHOICES) == expected


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        ("hot dog", ("dog", "hot dog"), 1),
        ("It is a hot dog.", ("dog", "hot dog"), 1),
        ("a dog and a hot dog", ("dog", "hot dog"), None),
        ("Yes", ("Yes", "No"), 0),
        ("No, I do not hear it.", ("yes", "no"), 1),
        ("6/8", ("3/4", "6/8"), 1),
        ("about 6 8 time", ("3/4", "6/8"), 1),
        ("B", ("B", "A"), 0),
        ("下雨的声音", ("下雨的声音", "刮风"), 0),
        ("same", ("same", "same"), None),
        ("anything", (), None),
    ],
)
def test_choices_of_other_kinds(answer, choices, expected):
    assert parse_choice(answer, choices) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", True),
        ("yes.", True),
        ("Yes, no doubt", True),
        ("No", False),
        ("no, they differ", False),
        ("Nope", False),
        ("I would say yes", True),
        ("The answer is no.", False),
        ("yes or no", True),
        ("maybe yes, maybe no", None),
        ("They are the same", None),
        ("", None),
        ("nobody", None),
        ("yesterday", None),
    ],
)
def test_yes_no(answer, expected):
    assert parse_yes_no(answer) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Happy", "happy"),
        ("excited", "happy"),
        ("The speaker sounds angry.", "angry"),
        ("Sadness", "sad"),
        ("neutral.", "neutral"),
        ("unhappy", "sad"),
        ("happy, excited", "happy"),
        ("happy and sad", None),
        ("not angry", None),
        ("not angry but sad", "sad"),
        ("surprised", None),
        ("", None),
    ],
)
def test_labels(answer, expected):
    assert parse_label(answer, LABELS) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("speech, audio; music", ["speech", "audio", "music"]),
        ("Keywords: Neural networks, TPU, and JAX.", ["neural networks", "tpu", "jax"]),
        ("1. speech\n2. audio\n3. music", ["speech", "audio", "music"]),
        ("- speech\n- audio", ["speech", "audio"]),
        ("speech audio and music", ["speech", "audio", "music"]),
        ("speech, speech", ["speech"]),
        ("语音、音频、音乐", ["语音", "音频", "音乐"]),
        ("", []),
    ],
)
def test_keywords(answer, expected):
    assert parse_keywords(answer) == expected


def test_unparseable_answers_are_wrong_and_counted():
    answers = ["B", "no idea", "Both a man and a woman", ""]
    predictions = [make_prediction("x", "Woman", text, id=str(i), choices=CHOICES) for i, text in enumerate(answers)]
    for metric in (accuracy(), contains_accuracy()):
        score = compute_score(metric, predictions)
        assert (score.value, score.count, score.unparseable, score.unscorable) == (1 / 4, 4, 3, 0)
    yes_no = [make_prediction("x", "Yes", text, id=text) for text in ("yes", "perhaps")]
    score = compute_score(yes_no_accuracy(), yes_no)
    assert (score.value, score.count, score.unparseable) == (1 / 2, 2, 1)
    assert score.details == {"confusion": {"yes": {"yes": 1, "unparseable": 1}}}


def test_balanced_accuracy_is_the_mean_over_classes():
    answers = [("Yes", "yes"), ("Yes", "no"), ("No", "no"), ("No", "no"), ("No", "no"), ("No", "?")]
    predictions = [make_prediction("x", r, p, id=str(i)) for i, (r, p) in enumerate(answers)]
    assert compute_score(yes_no_accuracy("balanced_accuracy"), predictions).value == pytest.approx((1 / 2 + 3 / 4) / 2)
