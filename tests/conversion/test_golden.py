"""Loads the converted golden set as a user does; compares with the original's results."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

import salmonn_jax
from salmonn_jax import model_directory
from salmonn_jax.audio.files import load_audio
from salmonn_jax.config import ModelConfig, from_dict
from salmonn_jax.errors import UserError
from tests.golden import MINI, NUM_CLIPS, relative_error


@pytest.fixture(scope="module")
def model(converted):
    """The converted golden set, loaded."""
    return salmonn_jax.load(converted)


@pytest.fixture(scope="module")
def clips() -> list[pathlib.Path]:
    """The audio files."""
    return [MINI.clip_path(clip) for clip in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def questions() -> list[str]:
    """The prompt of each clip, without the prompt template."""
    return [text.removeprefix("USER: ").removesuffix("\nASSISTANT:") for text in MINI.expected_json["prompts"]]


def test_configuration(converted):
    config = from_dict(ModelConfig, model_directory.read_config_json(converted)["model"])
    assert config == dataclasses.replace(MINI.config, pad_classes=1, stop_token_ids=(2,))


def test_audio_tokens_of_each_clip_alone(model, clips):
    for i, clip in enumerate(clips):
        theirs = MINI.expected[f"audio_tokens_single_{i}"]
        assert relative_error(model.encode_audio(clip), theirs) < 1e-5


def test_scores_of_the_answers_are_the_losses(model, clips, questions):
    """The model's [PAD] has a logit of zero, because its weights are in no checkpoint."""
    scores = model.score(clips, questions, MINI.expected_json["texts"])
    losses = [MINI.loss_without_pad_row(i) for i in range(NUM_CLIPS)]
    np.testing.assert_allclose([-score.mean() for score in scores], losses, rtol=1e-5)


@pytest.mark.parametrize(
    "too_long",
    ["error", *(pytest.param(name, marks=pytest.mark.slow) for name in ("truncate", "chunk", "chunk_answers"))],
)
def test_greedy_ids(model, clips, questions, too_long):
    """The original's ids begin with an <s> that ours leave out. The clips are shorter than the window."""
    expected = [answer["ids"][1:] for answer in MINI.expected_json["generate_greedy"]]
    answers = model.generate(clips, questions, num_beams=1, max_new_tokens=max(map(len, expected)), too_long=too_long)
    assert [answer.token_ids for answer in answers] == expected


@pytest.fixture(scope="module")
def long(clips) -> tuple[np.ndarray, int]:
    """A recording of 95 s, four windows of which the last has 5 s."""
    return np.resize(np.concatenate([load_audio(clip) for clip in clips]), 95 * 16_000), 16_000


@pytest.mark.slow
def test_a_recording_of_95_seconds(model, long):
    options = {"num_beams": 1, "max_new_tokens": 4}
    with pytest.raises(UserError, match=r"clip 1 is 95\.0 s, the window 30 s; choose too_long \(--too-long\) truncate"):
        model.generate(long, "What is said?", **options)
    parts = [(long[0][start : start + 480_000], 16_000) for start in range(0, len(long[0]), 480_000)]
    alone = model.generate(parts, "What is said?", **options)
    times = [(0.0, 30.0), (30.0, 60.0), (60.0, 90.0), (90.0, 95.0)]
    (truncated,) = model.generate(long, "What is said?", too_long="truncate", **options)
    assert (truncated.token_ids, truncated.windows) == (alone[0].token_ids, ((0.0, 30.0, None),))
    (answered,) = model.generate(long, "What is said?", too_long="chunk_answers", **options)
    assert answered.token_ids == [token for answer in alone for token in answer.token_ids]
    assert answered.windows == tuple((*time, answer.text) for time, answer in zip(times, alone, strict=True))
    (heard,) = model.generate(long, "What is said?", too_long="chunk", **options)
    assert heard.windows == tuple((*time, None) for time in times)
    with pytest.raises(UserError, match=r"clip 1 has 4 windows: \d+ tokens and 200 new tokens are more than the 512"):
        model.generate(long, "What is said?", num_beams=1, too_long="chunk")


@pytest.mark.parametrize(
    ("name", "tokens_of_last"), [("converted", 88), pytest.param("untrained", 15, marks=pytest.mark.slow)]
)
def test_audio_tokens_of_a_recording_of_95_seconds(request, name, tokens_of_last, long):
    """A model with `audio.tokens="clip"` does not read the tokens of the padding of the last window."""
    loaded = salmonn_jax.load(request.getfixturevalue(name))
    asked = loaded.make_request(long, "What is said?", max_new_tokens=4, too_long="chunk")
    (segment,) = asked.segments
    assert [len(window) for window in segment.clips] == [480_000, 480_000, 480_000, 80_000]
    assert [slot for slot in segment.audio_slots if slot >= 0] == list(range(3 * 88 + tokens_of_last))
    asked = loaded.make_request(long, "What is said?", max_new_tokens=4, too_long="chunk_answers")
    counts = [sum(slot >= 0 for slot in segment.audio_slots) for segment in asked.segments]
    assert counts == [88, 88, 88, tokens_of_last]
