"""`salmonn_jax.load`: what a user gets from a trained run."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import soundfile

import salmonn_jax
from data_pipelines import corpora
from data_pipelines.transforms.encode import encode_config, encode_example
from data_pipelines.transforms.prompt_templates import PromptTemplates
from launch.train import train
from salmonn_jax.configs import get_config
from salmonn_jax.errors import UserError
from salmonn_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A debug run of two steps."""
    folder = tmp_path_factory.mktemp("api")
    data = dataclasses.replace(get_config("debug").data, data_dir=str(folder / "tones"))
    train(dataclasses.replace(get_config("debug"), num_train_steps=2, data=data), folder / "run", None)
    return folder / "run"


@pytest.fixture(scope="module")
def model(trained):
    return salmonn_jax.load(trained)


@pytest.fixture(scope="module")
def examples(trained):
    corpus = corpora.open_corpus("tones", trained.parent / "tones")
    return [corpus.open_source("tones", "test")[i] for i in range(3)]


def test_generate_answers_each_question(model, examples):
    clips = [(e.audio, 16_000) for e in examples]
    together = model.generate(clips, [e.prompt for e in examples], max_new_tokens=5)
    assert len(together) == 3
    for answer, clip in zip(together, clips, strict=True):
        (alone,) = model.generate([clip], "Which tone is this?", max_new_tokens=5)
        assert alone.token_ids == answer.token_ids
        assert alone.score == pytest.approx(answer.score, rel=1e-4)
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == model.tokenizer.eos_token_id else "length")


def test_a_question_without_a_clip(model, examples):
    """In one batch with one that has a clip."""
    mixed = model.generate([None, (examples[0].audio, 16_000)], "Which tone is this?", max_new_tokens=4)
    (alone,) = model.generate([None], "Which tone is this?", max_new_tokens=4)
    assert mixed[0].token_ids == alone.token_ids


def test_a_model_that_reads_the_clip_alone_is_asked_as_it_was_trained(model, examples):
    audio = dataclasses.replace(model.config.audio, tokens="clip", minimum_seconds=0.1)
    config = dataclasses.replace(model.config, audio=audio)
    short, example = copy.copy(model), dataclasses.replace(examples[0], audio=examples[0].audio[:4000])
    short.config = config
    sizes = encode_config(config, dataclasses.replace(get_config("debug").data, max_transcript_tokens=0))
    trained_on = encode_example(
        example,
        0,
        source_index=0,
        tokenizer=model.tokenizer,
        prompt_templates=PromptTemplates("here", {}),
        config=sizes,
    )
    clip = (example.audio, 16_000)
    (asked,) = short._encode_prompts([clip], example.prompt)
    assert asked.tokens == trained_on.tokens[: trained_on.prompt_length]
    assert asked.audio_slots == trained_on.audio_slots[: trained_on.prompt_length]
    assert max(asked.audio_slots) + 1 == config.num_valid_audio_tokens(4000) < config.num_audio_tokens
    (whole,), (part,) = (one.score([clip], example.prompt, example.answer) for one in (model, short))
    assert not np.allclose(whole, part, rtol=1e-4)


def test_score_of_a_generation_is_its_score(model, examples):
    clip, prompt = (examples[0].audio, 16_000), examples[0].prompt
    scores = model.score([clip], prompt, ["low"])
    ids = [*model.tokenizer.encode("low"), model.tokenizer.eos_token_id]
    assert scores[0].shape == (len(ids),)
    assert (scores[0] < 0).all()
    together = model.score([clip, None], [prompt, "Which tone is this, of all?"], ["low", "high and low"])
    np.testing.assert_allclose(together[0], scores[0], rtol=1e-4)


def test_encode_audio(model, examples):
    encoded = model.encode_audio([(e.audio, 16_000) for e in examples])
    assert encoded.shape == (3, model.config.num_audio_tokens, model.config.llama.hidden_size)
    assert encoded.dtype == np.float32


def test_prompts_must_go_with_clips(model, examples):
    with pytest.raises(UserError, match="2 prompts for 1 clips"):
        model.generate((examples[0].audio, 16_000), ["a", "b"])


def test_audio_may_be_a_path_bytes_or_samples(model, examples, tmp_path):
    samples = examples[0].audio
    soundfile.write(tmp_path / "clip.wav", samples, 16_000)
    forms = [tmp_path / "clip.wav", str(tmp_path / "clip.wav"), (tmp_path / "clip.wav").read_bytes(), (samples, 16_000)]
    encoded = model.encode_audio(forms)
    assert len(encoded) == 4
    for other in encoded[1:]:
        np.testing.assert_array_equal(other, encoded[0])
    (one,) = model.generate(forms[0], "Which tone is this?", max_new_tokens=3)
    (other,) = model.generate([forms[2]], "Which tone is this?", num_beams=1, max_new_tokens=3)
    assert one == other
    alone = model.score(forms[0], "Which tone is this?", "low")
    (listed,) = model.score([forms[3]], ["Which tone is this?"], ["low"])
    np.testing.assert_array_equal(alone, listed)


def test_what_cannot_be_asked(model, examples):
    clip = (examples[0].audio, 16_000)
    with pytest.raises(UserError, match="there is no beam search yet"):
        model.generate(clip, "Which?", num_beams=4)
    with pytest.raises(UserError, match="2 answers for 1 clips"):
        model.score(clip, "Which?", ["low", "high"])
    for ask in (lambda: model.generate(clip, "Which?", max_new_tokens=64), lambda: model.score(clip, "x " * 64, "low")):
        with pytest.raises(UserError, match="more than the 64 tokens of the language model's context"):
            ask()
    with pytest.raises(UserError, match="no clips and no questions"):
        model.generate([], "Which?")


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"tensor": 4}, {"fsdp": 8}])
def test_a_model_on_a_mesh_answers_as_on_one_device(trained, model, examples, sizes):
    """Each device reads its part, and what is cut is nowhere whole."""
    spread = salmonn_jax.load(trained, mesh=make_mesh(sizes))
    kernel = spread.module.llama.layers.gate_proj.kernel[...]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // math.prod(sizes.values())}
    clips, asked = [(e.audio, 16_000) for e in examples], [e.prompt for e in examples]
    np.testing.assert_allclose(spread.encode_audio(clips), model.encode_audio(clips), rtol=1e-4, atol=1e-5)
    ours, theirs = (m.score(clips, asked, ["low"] * 3) for m in (spread, model))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    ours, theirs = (m.generate(clips, asked, max_new_tokens=4) for m in (spread, model))
    assert [a.token_ids for a in ours] == [a.token_ids for a in theirs]


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        salmonn_jax.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by salmonn_jax"):
        salmonn_jax.load(tmp_path)
