"""Prompts and answers against the original's token ids."""

from __future__ import annotations

import copy
import pickle

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT_SLOT, encode_answer, encode_prompt
from salmonn_jax.tokenizer import load_tokenizer
from tests import golden


@pytest.fixture(scope="module")
def tokenizer():
    golden.require()
    return load_tokenizer(golden.GOLDEN_DIR / "vicuna")


@pytest.mark.parametrize("clip", range(3))
def test_equals_the_original(tokenizer, clip):
    ids = golden.expected_json()["token_ids"][clip]
    prompt = golden.expected_json()["prompts"][clip]  # with the template already around it
    row = encode_prompt(tokenizer, "{}", prompt, valid_audio_tokens=[[88]], num_audio_tokens=88)
    before = [1, *ids["before"]]
    assert row.tokens[: len(before)] == before
    assert row.tokens[len(before) + 88 :] == ids["after"]
    assert row.audio_slots == [TEXT_SLOT] * len(before) + list(range(88)) + [TEXT_SLOT] * len(ids["after"])
    assert encode_answer(tokenizer, golden.expected_json()["texts"][clip], 300) == ids["target"]


def test_two_clips_take_two_places(tokenizer):
    row = encode_prompt(
        tokenizer, "{}", "<SpeechHere> or <SpeechHere>?", valid_audio_tokens=[[3], [3]], num_audio_tokens=3
    )
    assert [slot for slot in row.audio_slots if slot != TEXT_SLOT] == [0, 1, 2, 3, 4, 5]


def test_a_long_clip_is_heard_window_after_window(tokenizer):
    row = encode_prompt(
        tokenizer, "{}", "<SpeechHere> and <SpeechHere>", valid_audio_tokens=[[2, 2], [2]], num_audio_tokens=2
    )
    one = encode_prompt(
        tokenizer, "{}", "<SpeechHere> and <SpeechHere>", valid_audio_tokens=[[2], [2]], num_audio_tokens=2
    )
    assert [slot for slot in row.audio_slots if slot != TEXT_SLOT] == [0, 1, 2, 3, 4, 5]
    assert len(row.tokens) == len(one.tokens) + 2
    assert row.audio_slots[1:5] == [0, 1, 2, 3]


def test_of_a_window_only_what_is_clip_may_be_read(tokenizer):
    row = encode_prompt(
        tokenizer, "{}", "<SpeechHere> and <SpeechHere>", valid_audio_tokens=[[3, 1], [2]], num_audio_tokens=3
    )
    assert [slot for slot in row.audio_slots if slot != TEXT_SLOT] == [0, 1, 2, 3, 6, 7]


def test_a_prompt_must_say_where_its_clip_stands(tokenizer):
    with pytest.raises(UserError, match="0 <SpeechHere> for 1 clip"):
        encode_prompt(tokenizer, "{}", "Describe the audio.", valid_audio_tokens=[[88]], num_audio_tokens=88)


def test_a_cut_answer_has_no_end(tokenizer):
    whole = encode_answer(tokenizer, "a woman speaks", 300)
    assert whole[-1] == tokenizer.eos_token_id
    assert encode_answer(tokenizer, "a woman speaks", 4) == whole[:4]


def test_a_prompt_of_nothing(tokenizer):
    bare = copy.copy(tokenizer)
    bare.prefix_tokens = ()
    assert encode_prompt(bare, "{}", "a dog", valid_audio_tokens=[], num_audio_tokens=88).tokens == tokenizer.encode(
        "a dog"
    )
    with pytest.raises(UserError, match="the prompt is empty"):
        encode_prompt(bare, "{}", "", valid_audio_tokens=[], num_audio_tokens=88)


def test_workers_get_the_same_tokenizer(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a dog barks") == tokenizer.encode("a dog barks")
