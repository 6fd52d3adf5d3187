"""Tests of the rules for generated answers: each rule at its limit, and the order of the rules."""

from __future__ import annotations

import pytest

from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.self_generated import AnswerRules, sort_answers
from salmonn_jax.self_generated.rules import repeated_share, split_words, word_overlap

RULES = AnswerRules(min_words=3, max_words=8, max_repeated=0.25, max_transcript=0.5)


def answer(text: str, **fields) -> Prediction:
    return Prediction(
        **{
            "key": text,
            "id": text,
            "source": "s",
            "split": "train",
            "task": "audio_story_telling",
            "condition": "audio",
            "prompt": "Tell.",
            "references": ["a dog"],
            "prediction": text,
            "finish_reason": "stop",
            "num_tokens": 7,
            "audio_seconds": 1.0,
            "too_long": "truncate",
            "windows": [],
        }
        | fields
    )


def rule(text: str, *known_texts: str, **fields) -> str:
    rejection = RULES.find_rejection(answer(text, **fields), known_texts)
    return "" if rejection is None else rejection.rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n ... \u200b", "empty"),
        ("One two.", "short"),
        ("One, two: three!", ""),
        ("1 2 3 4 5 6 7 8", ""),
        ("1 2 3 4 5 6 7 8 9", "long"),
        ("a b c d a b c", ""),  # one of five sequences
        ("a b c a b c d", ""),
        ("a b c a b c a", "repeats"),  # two of five
        ("ha ha ha ha", "repeats"),
        ("\u732b\u304c\u5bdd\u308b", ""),  # four characters without spaces
        ("\u732b\u304c", "short"),
    ],
)
def test_texts(text, expected):
    assert rule(text) == expected


def test_answers_need_a_stop_token():
    assert rule("One two three", finish_reason="length") == "cut"
    rejection = RULES.find_rejection(answer("One two three", finish_reason="length"))
    assert rejection.detail == "no stop token within 7 tokens"


def test_an_error_has_no_answer():
    rejection = RULES.find_rejection(answer("", finish_reason="error", error="missing: no file"))
    assert rejection == ("error", "missing: no file")


def test_answers_that_repeat_a_known_text():
    story = "A dog barks at the old moon"
    assert rule(story, "", "the dog barks") == ""  # three of seven words
    assert rule(story, "The DOG barks at night") == "transcript"  # four
    assert rule(story, "no", "a dog barks at the old moon") == "transcript"
    assert rule("dog dog dog bark", "dog") == ""  # a word counts as often as the text has it
    detail = RULES.find_rejection(answer(story), ["", "A dog barks at the old moon."]).detail
    assert detail == "100% of its words are those of 'A dog barks at the old moon.'"


def test_shares():
    assert split_words("It's one-two\u3001\u732b\u3067\u3059 ok") == [
        "its",
        "one",
        "two",
        "\u732b",
        "\u3067",
        "\u3059",
        "ok",
    ]
    assert repeated_share(["a", "b"]) == 0
    assert repeated_share("a b a b a b".split()) == 0.5  # noqa: SIM905
    assert word_overlap([], ["a"]) == 0
    assert word_overlap(["a", "a", "b"], ["a", "c"]) == pytest.approx(1 / 3)


def test_answers_are_sorted_in_their_order():
    answers = [answer("One two three"), answer("One"), answer("three two one"), answer("")]
    kept, rejected = sort_answers(answers, RULES, lambda a: ["three two"] if a.id.startswith("three") else [])
    assert kept == [answers[0]]
    assert [(a.id, rejection.rule) for a, rejection in rejected] == [
        ("One", "short"),
        ("three two one", "transcript"),
        ("", "empty"),
    ]
