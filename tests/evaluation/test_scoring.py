"""Tests of the score table: its rows, their scores, and the text and JSON formats."""

from __future__ import annotations

import json

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation import scoring
from salmonn_jax.evaluation.scoring import Score, ScoreRow
from salmonn_jax.evaluation.scoring.failures import is_loop
from tests.evaluation.answers import make_prediction


@pytest.mark.parametrize(
    ("prediction", "wer", "accuracy"),
    [
        ("Go over there now over rain.", 0.0, 1.0),
        ("go over there now OVER\nRain", 0.0, 1.0),
        ("go over there now over wind", 0.0, 0.0),
        ("go there now over rain", 1 / 4, 1.0),
        # The last " over rain" is missing, so the " over " inside the sentence is the separator: "go" | "there now".
        ("go over there now", 3 / 4, 0.0),
        # Without a separator, all words count as speech and the name of the sound is wrong.
        ("go there now rain", 2 / 4, 0.0),
        ("rain", 4 / 4, 0.0),
        ("go over there now over", 3 / 4, 0.0),
        ("", 1.0, 0.0),
    ],
)
def test_speech_over_sound_is_split_at_the_last_separator(prediction, wer, accuracy):
    rows = scoring.score([make_prediction("speech_over_sound", "go over there now over rain", prediction)])
    assert [(row.metric, row.audio.value) for row in rows] == [("wer", pytest.approx(wer)), ("accuracy", accuracy)]


def test_a_speech_over_sound_reference_without_separator_is_unscorable():
    rows = scoring.score([make_prediction("speech_over_sound", "hello", "hello")])
    assert [(row.metric, row.audio.value, row.audio.unscorable) for row in rows] == [
        ("wer", 0, 0),
        ("accuracy", None, 1),
    ]


def test_a_row_has_the_scores_of_both_conditions():
    rows = scoring.score(
        [
            make_prediction("sound", "rain", "rain", id="a"),
            make_prediction("sound", "dog", "dog", id="b"),
            make_prediction("sound", "rain", "rain", id="a", condition="silence"),
            make_prediction("sound", "dog", "rain", id="b", condition="silence"),
        ]
    )
    assert len(rows) == 1
    assert (rows[0].split, rows[0].task, rows[0].metric) == ("test", "sound", "accuracy")
    assert (rows[0].audio.value, rows[0].audio.count) == (1.0, 2)
    assert (rows[0].silence.value, rows[0].silence.count) == (0.5, 2)


def test_a_condition_without_predictions_is_none():
    rows = scoring.score(
        [make_prediction("sound", "rain", "rain", condition="silence"), make_prediction("metre", "6/8", "6/8")]
    )
    assert [(row.task, row.audio is None, row.silence is None) for row in rows] == [
        ("metre", False, True),
        ("sound", True, False),
    ]


def test_rows_are_ordered_by_split_then_task():
    unordered = [
        make_prediction("tune_type", "jig", "jig", split="zoo"),
        make_prediction("sound", "rain", "rain", split="unheard"),
        make_prediction("sound", "rain", "rain", split="archive"),
        make_prediction("tune_type", "jig", "jig"),
        make_prediction("transcribe", "a b", "a b"),
    ]
    expected = [
        ("test", "transcribe"),
        ("test", "tune_type"),
        ("unheard", "sound"),
        ("archive", "sound"),
        ("zoo", "tune_type"),
    ]
    for predictions in (unordered, unordered[::-1]):
        assert [(row.split, row.task) for row in scoring.score(predictions)] == expected


def test_an_unknown_task_raises_user_error_with_a_suggestion():
    with pytest.raises(UserError, match=r"unknown task 'transcribed'; did you mean 'transcribe'\?"):
        scoring.score([make_prediction("transcribed", "a", "a")])


def test_two_predictions_of_one_example_raise_user_error():
    with pytest.raises(UserError, match="clip 'a' of 'mini' has two answers for condition audio"):
        scoring.score([make_prediction("sound", "rain", "rain"), make_prediction("sound", "rain", "dog")])


def test_scoring_no_prediction_raises_user_error():
    with pytest.raises(UserError, match="no prediction"):
        scoring.score([])


ROWS = [
    ScoreRow("test", "numbers", "wer", Score("wer", 0.123, 200, 0.1, 0.1456), Score("wer", 1.5, 200, 1.25, 1.75)),
    ScoreRow("unheard", "sound", "accuracy", Score("accuracy", 0.9, 30, 0.75, 0.96), None),
    ScoreRow("unheard", "metre", "accuracy", Score("accuracy", 1.0, 9, 0.7, 1.0), Score("accuracy", 0.0, 8, 0.0, 0.3)),
]


def test_format_table():
    assert scoring.format_table(ROWS).splitlines() == [
        "task     metric    split    clips  audio                    silence",
        "-------  --------  -------  -----  -----------------------  ------------------------",
        "numbers  wer       test     200    12.3 % [10.0 to 14.6]    150.0 % [125.0 to 175.0]",
        "sound    accuracy  unheard  30     90.0 % [75.0 to 96.0]    -",
        "metre    accuracy  unheard  9 / 8  100.0 % [70.0 to 100.0]  0.0 % [0.0 to 30.0]",
    ]


def test_json_contains_every_field():
    loaded = json.loads(scoring.to_json(ROWS))
    for row in loaded["rows"]:
        row |= {key: row[key] and Score(**row[key] | {"notes": ()}) for key in ("audio", "silence")}
    assert [ScoreRow(**row) for row in loaded["rows"]] == ROWS
    assert (loaded["format_version"], loaded["errors"], loaded["failures"]) == (1, "wrong", [])


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("the dog " * 40, True),
        ("ha" * 100, True),
        ("", False),
        ("the dog", False),
        ("一二三" * 30, True),
        ("\ud83c", False),
    ],
)
def test_loops_are_texts_that_compress_well(text, loops):
    assert is_loop(text) is loops


def test_failures_are_counted_per_task_and_condition():
    predictions = [
        make_prediction("sound", "rain", "", id="1"),
        make_prediction("sound", "rain", "", id="2", error="no such file"),
        make_prediction("sound", "rain", "rain", id="3", finish_reason="length"),
        make_prediction("sound", "rain", "rain " * 60, id="3", finish_reason="length", condition="silence"),
        make_prediction("speaker_verification", "Yes", "perhaps", id="4"),
        make_prediction("speaker_verification", "Yes", "", id="5", error="no such file"),
    ]
    failures = scoring.count_failures(predictions, scoring.score(predictions))
    counts = {(f.task, f.condition): (f.clips, f.errors, f.empty, f.cut, f.loops, f.unparseable) for f in failures}
    assert counts == {
        ("sound", "audio"): (3, 1, 1, 1, 0, 0),
        ("sound", "silence"): (1, 0, 0, 1, 1, 0),
        ("speaker_verification", "audio"): (2, 1, 0, 0, 0, 1),
    }
    table = scoring.format_failures(failures).splitlines()
    assert table[0].split() == [
        "task",
        "split",
        "part",
        "condition",
        "clips",
        "errors",
        "empty",
        "cut",
        "loops",
        "unparseable",
    ]
    assert len(table) == 2 + 3
    assert scoring.format_failures(failures[:0]) == ""


def test_rows_are_divided_by_a_property():
    predictions = [
        make_prediction("asr", "a", text, id=text, source=source) for text, source in (("a", "clean"), ("b", "other"))
    ]
    assert [(row.part, row.audio.value) for row in scoring.score(predictions, by="source")] == [
        ("clean", 0),
        ("other", 1),
    ]
    assert scoring.score(predictions)[0].audio.value == 0.5


def test_a_reference_in_another_language_than_that_of_the_protocol_is_noted():
    (row,) = scoring.score([make_prediction("asr", "guten tag", "guten tag", language="de")])
    assert row.audio.notes == ("asr-en@1 is made for 'en'; some references are de",)


@pytest.mark.parametrize("apostrophe", "'`\u00b4\u2018\u2019\u2032\u02bc\uff07")
def test_the_apostrophe_of_an_answer_does_not_matter(apostrophe):
    for task in ("asr", "asr_de", "transcribe", "lyrics_recognition"):
        (row,) = scoring.score([make_prediction(task, "don't stop", f"Don{apostrophe}t stop.")])
        assert row.audio.value == 0.0
