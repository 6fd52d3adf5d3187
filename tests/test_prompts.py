"""Tests of the encoding of prompts and answers, against the token ids of the original."""

from __future__ import annotations

import copy
import pickle

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.prompts import (
    PROMPT_TEMPLATES,
    SPEECH_TAG,
    TEXT_SLOT,
    add_audio_placeholder,
    encode_answer,
    encode_prompt,
    template_name,
)
from salmonn_jax.tokenizer import load_tokenizer
from tests.golden import MINI


@pytest.fixture(scope="module")
def tokenizer():
    MINI.require()
    return load_tokenizer(MINI.directory / "vicuna")


@pytest.mark.parametrize("clip", range(3))
def test_token_ids_equal_those_of_the_original(tokenizer, clip):
    ids = MINI.expected_json["token_ids"][clip]
    prompt = MINI.expected_json["prompts"][clip]  # includes the template
    row = encode_prompt(tokenizer, "{}", prompt, valid_audio_token_counts=[[88]], num_audio_tokens=88)
    before = [1, *ids["before"]]
    assert row.tokens[: len(before)] == before
    assert row.tokens[len(before) + 88 :] == ids["after"]
    assert row.audio_slots == [TEXT_SLOT] * len(before) + list(range(88)) + [TEXT_SLOT] * len(ids["after"])
    assert encode_answer(tokenizer, MINI.expected_json["texts"][clip], 300) == ids["target"]


def test_two_clips_have_consecutive_audio_slots(tokenizer):
    row = encode_prompt(
        tokenizer, "{}", "<SpeechHere> or <SpeechHere>?", valid_audio_token_counts=[[3], [3]], num_audio_tokens=3
    )
    assert [slot for slot in row.audio_slots if slot != TEXT_SLOT] == [0, 1, 2, 3, 4, 5]


def test_windows_of_a_long_clip_follow_each_other(tokenizer):
    row = encode_prompt(
        tokenizer, "{}", "<SpeechHere> and <SpeechHere>", valid_audio_token_counts=[[2, 2], [2]], num_audio_tokens=2
    )
    short_row = encode_prompt(
        tokenizer, "{}", "<SpeechHere> and <SpeechHere>", valid_audio_token_counts=[[2], [2]], num_audio_tokens=2
    )
    assert [slot for slot in row.audio_slots if slot != TEXT_SLOT] == [0, 1, 2, 3, 4, 5]
    assert len(row.tokens) == len(short_row.tokens) + 2
    assert row.audio_slots[1:5] == [0, 1, 2, 3]


def test_a_prompt_may_contain_fewer_audio_tokens_than_a_window_has(tokenizer):
    row = encode_prompt(
        tokenizer, "{}", "<SpeechHere> and <SpeechHere>", valid_audio_token_counts=[[3, 1], [2]], num_audio_tokens=3
    )
    assert [slot for slot in row.audio_slots if slot != TEXT_SLOT] == [0, 1, 2, 3, 6, 7]


def test_error_for_a_prompt_without_placeholder(tokenizer):
    with pytest.raises(UserError, match="0 <SpeechHere> for 1 clip"):
        encode_prompt(tokenizer, "{}", "Describe the audio.", valid_audio_token_counts=[[88]], num_audio_tokens=88)


def test_a_cut_answer_has_no_end_token(tokenizer):
    whole = encode_answer(tokenizer, "a woman speaks", 300)
    assert whole[-1] == tokenizer.eos_token_id
    assert encode_answer(tokenizer, "a woman speaks", 4) == whole[:4]


def test_an_answer_ends_with_the_first_stop_token_of_the_model(tokenizer):
    assert encode_answer(tokenizer, "a dog", stop_token_ids=(7, 2)) == [*tokenizer.encode("a dog"), 7]
    assert encode_answer(tokenizer, "a dog", stop_token_ids=()) == [*tokenizer.encode("a dog"), 2]


def test_the_start_token_is_encoded_once(tokenizer):
    """A template adds it, or has it in its text."""
    options = {"valid_audio_token_counts": [], "num_audio_tokens": 88}
    added = encode_prompt(tokenizer, "[INST] {} [/INST]", "a dog", **options)
    written = encode_prompt(tokenizer, "<s>[INST] {} [/INST]", "a dog", add_bos_token=False, **options)
    assert added.tokens == written.tokens and added.tokens.count(tokenizer.bos_token_id) == 1
    none = encode_prompt(tokenizer, "[INST] {} [/INST]", "a dog", add_bos_token=False, **options)
    assert none.tokens == added.tokens[1:]


def test_a_template_has_the_name_of_its_markers():
    for name, template in PROMPT_TEMPLATES.items():
        assert template_name(template.text) == name
        assert all(token in template.text for token in template.special_tokens)
    assert template_name("<|im_start|>system\nBe brief.<|im_end|>\n" + PROMPT_TEMPLATES["chatml"].text) == "chatml"
    assert template_name("USER: {} ASSISTANT:") == "custom"


def test_empty_prompt_without_prefix_tokens(tokenizer):
    no_prefix = copy.copy(tokenizer)
    no_prefix.prefix_tokens = ()
    assert encode_prompt(
        no_prefix, "{}", "a dog", valid_audio_token_counts=[], num_audio_tokens=88
    ).tokens == tokenizer.encode("a dog")
    with pytest.raises(UserError, match="the prompt is empty"):
        encode_prompt(no_prefix, "{}", "", valid_audio_token_counts=[], num_audio_tokens=88)


def test_tokenizer_can_be_pickled(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a dog barks") == tokenizer.encode("a dog barks")


def test_a_prompt_without_placeholder_gets_one_per_clip():
    assert add_audio_placeholder("What?", num_clips=0) == "What?"
    assert add_audio_placeholder("What?", num_clips=1) == f"{SPEECH_TAG} What?"
    assert add_audio_placeholder("What? <SpeechHere>", num_clips=1) == "What? <SpeechHere>"


@pytest.mark.parametrize(
    ("prompt", "num_clips"), [("<SpeechHere>", 0), ("<SpeechHere> <SpeechHere>", 1), ("a\ud83c", 1)]
)
def test_wrong_prompts_raise_user_error(prompt, num_clips):
    with pytest.raises(UserError, match="prompt"):
        add_audio_placeholder(prompt, num_clips=num_clips)
