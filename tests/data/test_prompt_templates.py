"""The wordings of the tasks: ours, and the original's files as they are."""

from __future__ import annotations

import json
import pickle

import pytest

from data_pipelines.examples import BadExample
from data_pipelines.transforms.prompt_templates import SPEECH_TAG, PromptTemplates
from salmonn_jax.errors import UserError

OURS = PromptTemplates.load()

# train_prompt.json and test_prompt.json of the original
TRAINED = (
    "asr asr_zh asr_de translation_ec audiocaption audiocaption_v2 QA inference_QA gender_QA gender_recognition "
    "phone_recognition speech_separation emotion_recognition music_description speaker_verification "
    "audio_story_telling speaker_diarization_asr"
)
TESTED = (
    "translation_en2de translation_en2ja keywords speech_query slot_filling speech_audio_query "
    "speech_audio_coreasoning lyrics_recognition audio_speech_description fluent_speech_audio"
)
ASKED = {"QA", "inference_QA", "gender_QA", "slot_filling"}  # the line brings the question


def write(path, tasks):
    path.write_text(json.dumps(tasks))
    return PromptTemplates.load(str(path))


def test_every_task_of_the_original_has_several():
    assert set(OURS.by_task) == {*TRAINED.split(), *TESTED.split()}
    for task, wordings in OURS.by_task.items():
        assert 4 <= len(set(wordings)) == len(wordings) <= 8, task
        assert all(wording.count("{}") == (task in ASKED) and SPEECH_TAG not in wording for wording in wordings), task


def test_the_clip_comes_first_and_numbers_count_round():
    wordings = OURS.by_task["asr"]
    assert OURS.render("asr", "", 0, has_audio=True) == f"<Speech><SpeechHere></Speech> {wordings[0]}"
    assert OURS.render("asr", "", len(wordings) + 1, has_audio=True) == f"{SPEECH_TAG} {wordings[1]}"
    assert OURS.render("asr", "", 2**31, has_audio=False) == wordings[2**31 % len(wordings)]


def test_a_question_may_hold_braces():
    question = "What does {0} mean, or {}?"
    assert OURS.render("QA", question, 0, has_audio=True) == f"{SPEECH_TAG} {question}"
    assert OURS.render("QA", question, 1, has_audio=False) == f"Listen, then answer: {question}"


def test_a_question_that_is_missing():
    with pytest.raises(BadExample, match="'QA' needs a question") as caught:
        OURS.render("QA", " ", 0, has_audio=True)
    assert caught.value.reason == "wrong line"


def test_a_task_without_wordings():
    with pytest.raises(BadExample, match=r"unknown task 'asrr'; did you mean 'asr'.*its own prompt") as caught:
        OURS.render("asrr", "", 0, has_audio=True)
    assert caught.value.reason == "wrong line"


def test_the_training_file_of_the_original(tmp_path):
    """What does not say where the clip stands is dropped, as the original does."""
    asked = write(
        tmp_path / "train_prompt.json",
        {
            "asr": [f"{SPEECH_TAG} Write it down.", "No clip here."],
            "QA": [f"{SPEECH_TAG} {{}}"],
            "lost": ["No clip here."],
        },
    )
    assert asked.by_task == {"asr": (f"{SPEECH_TAG} Write it down.",), "QA": (f"{SPEECH_TAG} {{}}",)}
    assert asked.render("asr", "", 5, has_audio=True) == f"{SPEECH_TAG} Write it down."
    assert asked.render("QA", "Who?", 5, has_audio=True) == f"{SPEECH_TAG} Who?"
    assert asked.render("QA", "Who?", 5, has_audio=False) == "Who?"
    with pytest.raises(BadExample):
        asked.render("lost", "", 0, has_audio=True)


def test_the_test_file_of_the_original(tmp_path):
    asked = write(
        tmp_path / "test_prompt.json", {"slot_filling": f"{SPEECH_TAG} What is the {{}}?", "asr": f"{SPEECH_TAG} Go."}
    )
    assert asked.render("slot_filling", "date", 3, has_audio=True) == f"{SPEECH_TAG} What is the date?"
    assert asked.render("asr", "", 4, has_audio=True) == f"{SPEECH_TAG} Go."


def test_it_is_pickled_for_workers():
    again = pickle.loads(pickle.dumps(OURS))
    assert again == OURS and again.render("keywords", "", 3, has_audio=True) == OURS.render(
        "keywords", "", 3, has_audio=True
    )


@pytest.mark.parametrize("tasks", [[], {"asr": []}, {"asr": [1]}, {"asr": 3}, {"asr": [""]}])
def test_a_file_of_anything_else(tmp_path, tasks):
    with pytest.raises(UserError, match=r"wordings\.json"):
        write(tmp_path / "wordings.json", tasks)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        PromptTemplates.load(str(tmp_path / "missing.json"))
    (tmp_path / "broken.json").write_text('{"asr": [')
    with pytest.raises(UserError, match="cannot be read"):
        PromptTemplates.load(str(tmp_path / "broken.json"))
