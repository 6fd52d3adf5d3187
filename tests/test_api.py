"""`salmonn_jax.load`: what a user gets from a trained run."""

from __future__ import annotations

import copy
import dataclasses
import math

import jax
import numpy as np
import pytest
import soundfile

import salmonn_jax
from data_pipelines import corpora
from data_pipelines.transforms.encode import encode_config, encode_example
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.batch import collate
from salmonn_jax.configs import get_preset
from salmonn_jax.errors import UserError
from salmonn_jax.model_directory import load_model
from salmonn_jax.sharding import make_mesh
from salmonn_jax.training.step import batch_loss

NEW = 4  # tokens to generate, the same in all tests so that they share compiled programs


@pytest.fixture(scope="module")
def model(debug_run):
    return salmonn_jax.load(debug_run)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    corpus = corpora.open_corpus("tones", tmp_path_factory.mktemp("tones"))
    return [corpus.open_source("tones", "test")[i] for i in range(3)]


def test_generate_answers_each_question(model, examples):
    clips = [(e.audio, 16_000) for e in examples]
    together = model.generate(clips, [e.prompt for e in examples], max_new_tokens=NEW)
    assert len(together) == 3
    for answer, clip in zip(together, clips, strict=True):
        (alone,) = model.generate([clip], "Which tone is this?", max_new_tokens=NEW)
        assert alone.token_ids == answer.token_ids
        assert alone.score == pytest.approx(answer.score, rel=1e-4)
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == model.tokenizer.eos_token_id else "length")


def test_a_question_without_a_clip(model, examples):
    """It is in one batch with a question that has a clip."""
    mixed = model.generate([None, (examples[0].audio, 16_000)], "Which tone is this?", max_new_tokens=NEW)
    (alone,) = model.generate([None], "Which tone is this?", max_new_tokens=NEW)
    assert mixed[0].token_ids == alone.token_ids


def test_a_model_that_reads_the_clip_alone_is_asked_as_it_was_trained(debug_run, model, examples):
    """Checks that with `audio.tokens="clip"` the score of an answer is the training loss of that example."""
    audio = dataclasses.replace(model.config.audio, tokens="clip", minimum_seconds=0.1)
    config = dataclasses.replace(model.config, audio=audio)
    short, example = copy.copy(model), dataclasses.replace(examples[0], audio=examples[0].audio[:4000])
    short.config = config
    sizes = encode_config(config, dataclasses.replace(get_preset("debug").recipe.data, max_transcript_tokens=0))
    trained_on = encode_example(
        example,
        0,
        source_index=0,
        tokenizer=model.tokenizer,
        prompt_templates=PromptTemplates("here", {}),
        config=sizes,
    )
    assert max(trained_on.audio_slots) + 1 == config.num_valid_audio_tokens(4000) < config.num_audio_tokens
    batch = collate(
        [[trained_on]],
        seq_len=len(trained_on.tokens),
        window_samples=config.audio.window_samples,
        num_audio_tokens=config.num_audio_tokens,
    )
    recipe, loaded = get_preset("debug").recipe, load_model(debug_run)
    loss, _ = jax.jit(lambda params: batch_loss(recipe, loaded.structure, params, {}, batch, 1, None))(loaded.params)
    clip = (example.audio, 16_000)
    (whole,), (part,) = (one.score([clip], example.prompt, example.answer) for one in (model, short))
    assert -part.mean() == pytest.approx(float(loss), rel=1e-5)
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
    (one,) = model.generate(forms[0], "Which tone is this?", max_new_tokens=NEW)
    (other,) = model.generate([forms[2]], "Which tone is this?", num_beams=1, max_new_tokens=NEW)
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


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 2, "tensor": 2},
        pytest.param({"tensor": 4}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_model_on_a_mesh_answers_as_on_one_device(debug_run, model, examples, sizes):
    """Each device reads its part, and no device holds a whole kernel."""
    spread = salmonn_jax.load(debug_run, mesh=make_mesh(sizes))
    kernel = spread.module.llama.layers.gate_proj.kernel[...]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // math.prod(sizes.values())}
    clips, asked = [(e.audio, 16_000) for e in examples], [e.prompt for e in examples]
    np.testing.assert_allclose(spread.encode_audio(clips), model.encode_audio(clips), rtol=1e-4, atol=1e-5)
    ours, theirs = (m.score(clips, asked, ["low"] * 3) for m in (spread, model))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    ours, theirs = (m.generate(clips, asked, max_new_tokens=NEW) for m in (spread, model))
    assert [a.token_ids for a in ours] == [a.token_ids for a in theirs]


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        salmonn_jax.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by salmonn_jax"):
        salmonn_jax.load(tmp_path)
