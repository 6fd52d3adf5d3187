"""Tests of the prompt templates of the tasks: the built-in ones and files of the original SALMONN."""

from __future__ import annotations

import json
import pickle

import pytest

from data_pipelines.examples import BadExample
from data_pipelines.transforms.prompt_templates import SPEECH_TAG, PromptTemplates
from salmonn_jax.errors import UserError

BUILT_IN = PromptTemplates.load()

# Tasks in train_prompt.json and test_prompt.json of the original SALMONN.
TRAIN_TASKS = (
    "asr asr_zh asr_de translation_ec audiocaption audiocaption_v2 QA inference_QA gender_QA gender_recognition "
    "phone_recognition speech_separation emotion_recognition music_description speaker_verification "
    "audio_story_telling speaker_diarization_asr"
)
TEST_TASKS = (
    "translation_en2de translation_en2ja keywords speech_query slot_filling speech_audio_query "
    "speech_audio_coreasoning lyrics_recognition audio_speech_description fluent_speech_audio"
)
QUESTION_TASKS = {"QA", "inference_QA", "gender_QA", "slot_filling"}  # their examples have a question


def write_and_load(path, tasks):
    """Writes a file with prompt templates and loads it."""
    path.write_text(json.dumps(tasks))
    return PromptTemplates.load(str(path))


def test_every_original_task_has_several_templates():
    assert set(BUILT_IN.by_task) == {*TRAIN_TASKS.split(), *TEST_TASKS.split()}
    for task, templates in BUILT_IN.by_task.items():
        assert 4 <= len(set(templates)) == len(templates) <= 8, task
        for template in templates:
            assert template.count("{}") == (task in QUESTION_TASKS) and SPEECH_TAG not in template, task


def test_render_puts_the_clip_first_and_wraps_the_template_number():
    templates = BUILT_IN.by_task["asr"]
    assert BUILT_IN.render("asr", "", 0, has_audio=True) == f"<Speech><SpeechHere></Speech> {templates[0]}"
    assert BUILT_IN.render("asr", "", len(templates) + 1, has_audio=True) == f"{SPEECH_TAG} {templates[1]}"
    assert BUILT_IN.render("asr", "", 2**31, has_audio=False) == templates[2**31 % len(templates)]


def test_a_question_may_contain_braces():
    question = "What does {0} mean, or {}?"
    assert BUILT_IN.render("QA", question, 0, has_audio=True) == f"{SPEECH_TAG} {question}"
    assert BUILT_IN.render("QA", question, 1, has_audio=False) == f"Listen, then answer: {question}"


def test_a_missing_question_is_rejected():
    with pytest.raises(BadExample, match="'QA' needs a question") as caught:
        BUILT_IN.render("QA", " ", 0, has_audio=True)
    assert caught.value.reason == "invalid"


def test_an_unknown_task_is_rejected():
    with pytest.raises(BadExample, match=r"unknown task 'asrr'; did you mean 'asr'.*its own prompt") as caught:
        BUILT_IN.render("asrr", "", 0, has_audio=True)
    assert caught.value.reason == "invalid"


def test_original_training_file(tmp_path):
    """Checks that templates without a placeholder for the clip are dropped, as in the original."""
    loaded = write_and_load(
        tmp_path / "train_prompt.json",
        {
            "asr": [f"{SPEECH_TAG} Write it down.", "No clip here."],
            "QA": [f"{SPEECH_TAG} {{}}"],
            "lost": ["No clip here."],
        },
    )
    assert loaded.by_task == {"asr": (f"{SPEECH_TAG} Write it down.",), "QA": (f"{SPEECH_TAG} {{}}",)}
    assert loaded.render("asr", "", 5, has_audio=True) == f"{SPEECH_TAG} Write it down."
    assert loaded.render("QA", "Who?", 5, has_audio=True) == f"{SPEECH_TAG} Who?"
    assert loaded.render("QA", "Who?", 5, has_audio=False) == "Who?"
    with pytest.raises(BadExample):
        loaded.render("lost", "", 0, has_audio=True)


def test_original_test_file(tmp_path):
    loaded = write_and_load(
        tmp_path / "test_prompt.json", {"slot_filling": f"{SPEECH_TAG} What is the {{}}?", "asr": f"{SPEECH_TAG} Go."}
    )
    assert loaded.render("slot_filling", "date", 3, has_audio=True) == f"{SPEECH_TAG} What is the date?"
    assert loaded.render("asr", "", 4, has_audio=True) == f"{SPEECH_TAG} Go."


def test_prompt_templates_can_be_pickled():
    copy = pickle.loads(pickle.dumps(BUILT_IN))
    arguments = ("keywords", "", 3)
    assert copy == BUILT_IN
    assert copy.render(*arguments, has_audio=True) == BUILT_IN.render(*arguments, has_audio=True)


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        {"asr": []},
        {"asr": [1]},
        {"asr": 3},
        {"asr": [""]},
        {"asr": ["<SpeechHere><SpeechHere>"]},
        {"asr": ["\ud83c"]},
    ],
)
def test_a_file_of_another_format_raises_user_error(tmp_path, tasks):
    with pytest.raises(UserError, match=r"templates\.json"):
        write_and_load(tmp_path / "templates.json", tasks)


def test_a_question_with_a_placeholder_is_rejected():
    with pytest.raises(BadExample, match="must not contain <SpeechHere>"):
        BUILT_IN.render("QA", "<SpeechHere>?", 0, has_audio=True)


@pytest.mark.parametrize("content", [b'{"asr": ["caf\xe9"]}', '{"asr": ["x"]}'.encode("utf-16")])
def test_a_file_in_another_encoding_raises_user_error(tmp_path, content):
    (tmp_path / "templates.json").write_bytes(content)
    with pytest.raises(UserError, match="is not UTF-8"):
        PromptTemplates.load(str(tmp_path / "templates.json"))
    (tmp_path / "templates.json").write_bytes(b"\xef\xbb\xbf" + b'{"asr": ["x"]}')
    assert PromptTemplates.load(str(tmp_path / "templates.json")).by_task == {"asr": ("x",)}


def test_an_unreadable_file_raises_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        PromptTemplates.load(str(tmp_path / "missing.json"))
    (tmp_path / "broken.json").write_text('{"asr": [')
    with pytest.raises(UserError, match="cannot be read"):
        PromptTemplates.load(str(tmp_path / "broken.json"))
