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
    together = model.generate(clips, [e.prompt for e in examples], num_beams=1, max_new_tokens=NEW)
    assert len(together) == 3
    for answer, clip in zip(together, clips, strict=True):
        (alone,) = model.generate([clip], "Which tone is this?", num_beams=1, max_new_tokens=NEW)
        assert alone.token_ids == answer.token_ids
        assert answer.num_tokens == len(answer.token_ids)
        assert alone.score == pytest.approx(answer.score, rel=1e-4)
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == model.tokenizer.eos_token_id else "length")


def test_a_question_without_a_clip(model, examples):
    """It is in one batch with a question that has a clip."""
    mixed = model.generate([None, (examples[0].audio, 16_000)], "Which tone is this?", num_beams=1, max_new_tokens=NEW)
    (alone,) = model.generate([None], "Which tone is this?", num_beams=1, max_new_tokens=NEW)
    assert mixed[0].token_ids == alone.token_ids


@pytest.mark.slow
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
    loss, _ = jax.jit(lambda params, batch: batch_loss(recipe, loaded.structure, params, {}, batch, 1, None))(
        loaded.params, batch
    )
    clip = (example.audio, 16_000)
    (whole,), (part,) = (one.score([clip], example.prompt, example.answer) for one in (model, short))
    assert -part.mean() == pytest.approx(float(loss), rel=1e-5)
    assert not np.allclose(whole, part, rtol=1e-4)


@pytest.mark.slow
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
    (one,) = model.generate(forms[0], "Which tone is this?", num_beams=1, max_new_tokens=NEW)
    (other,) = model.generate([forms[2]], "Which tone is this?", num_beams=1, max_new_tokens=NEW)
    assert one == other
    alone = model.score(forms[0], "Which tone is this?", "low")
    (listed,) = model.score([forms[3]], ["Which tone is this?"], ["low"])
    np.testing.assert_array_equal(alone, listed)


def test_what_cannot_be_asked(model, examples):
    clip = (examples[0].audio, 16_000)
    with pytest.raises(UserError, match="num_beams=0: "):
        model.generate(clip, "Which?", num_beams=0)
    with pytest.raises(UserError, match="unknown configuration field 'beams'"):
        model.generate(clip, "Which?", beams=4)
    with pytest.raises(UserError, match="2 answers for 1 clips"):
        model.score(clip, "Which?", ["low", "high"])
    for ask in (lambda: model.generate(clip, "Which?", max_new_tokens=64), lambda: model.score(clip, "x " * 64, "low")):
        with pytest.raises(UserError, match="more than the 64 tokens of the language model's context"):
            ask()
    with pytest.raises(UserError, match="no clips and no questions"):
        model.generate([], "Which?")


POLICIES = ("error", "truncate", "chunk", "chunk_answers")


def test_a_clip_that_fits_is_answered_alike_under_each_policy(model, examples):
    clip, prompt = (examples[0].audio, 16_000), examples[0].prompt
    answers = [model.generate(clip, prompt, num_beams=1, max_new_tokens=NEW, too_long=policy)[0] for policy in POLICIES]
    assert answers == [answers[0]] * 4
    assert answers[0].windows == ((0.0, len(examples[0].audio) / 16_000, None),)
    for policy in POLICIES[:3]:
        np.testing.assert_array_equal(
            model.score(clip, prompt, "low", too_long=policy), model.score(clip, prompt, "low")
        )
        np.testing.assert_array_equal(model.encode_audio(clip, too_long=policy), model.encode_audio(clip))


def test_a_long_clip(model):
    """The window has one second and three audio tokens."""
    rng = np.random.default_rng(0)
    samples, prompt = rng.integers(-9000, 9000, 16_000 * 5 // 2).astype(np.int16), "Which?"
    long = (samples, 16_000)
    windows = [(samples[start : start + 16_000], 16_000) for start in (0, 16_000, 32_000)]
    for method in (
        lambda: model.generate(long, prompt),
        lambda: model.score(long, prompt, "low"),
        lambda: model.encode_audio(long),
    ):
        with pytest.raises(UserError, match=r"clip 1 is 2\.5 s, the window 1 s; choose too_long"):
            method()
    options = {"num_beams": 1, "max_new_tokens": NEW, "batch_size": 3}
    (cut,), (first, *others) = (
        model.generate(long, prompt, too_long="truncate", **options),
        model.generate(windows, prompt, **options),
    )
    assert cut == first
    (joined,) = model.generate(long, prompt, too_long="chunk_answers", **options)
    alone = [first, *others]
    assert joined.token_ids == [token for answer in alone for token in answer.token_ids]
    assert joined.score == pytest.approx(np.mean([answer.score for answer in alone]), rel=1e-5)
    texts = [answer.text for answer in alone]
    assert joined.text == " ".join(text for text in texts if text)
    assert joined.windows == tuple(zip((0.0, 1.0, 2.0), (1.0, 2.0, 2.5), texts, strict=True))
    (together,) = model.generate(long, prompt, too_long="chunk", **options)
    assert together.windows == ((0.0, 1.0, None), (1.0, 2.0, None), (2.0, 2.5, None))
    request = model.make_request(long, prompt, max_new_tokens=NEW, too_long="chunk")
    slots = [slot for slot in request.segments[0].audio_slots if slot >= 0]
    assert slots == list(range(3 * model.config.num_audio_tokens))


def test_chunk_hears_every_window(model):
    """Checks that the score of an answer depends on the last window, and that a clip and its padding do not mix."""
    rng = np.random.default_rng(0)
    samples = rng.integers(-9000, 9000, 40_000).astype(np.int16)
    other = np.concatenate([samples[:32_000], samples[:8_000]])
    short = samples[:4_000]
    scores = model.score([(samples, 16_000), (other, 16_000), (short, 16_000)], "Which?", ["low"] * 3, too_long="chunk")
    assert not np.allclose(scores[0], scores[1], rtol=1e-4)
    np.testing.assert_allclose(scores[2], model.score((short, 16_000), "Which?", "low"), rtol=1e-4)
    encoded = model.encode_audio([(samples, 16_000), (short, 16_000)], too_long="chunk")
    count = model.config.num_audio_tokens
    assert encoded.shape == (2, 3 * count, model.config.llama.hidden_size)
    windows = model.encode_audio([(samples[i : i + 16_000], 16_000) for i in (0, 16_000, 32_000)])
    np.testing.assert_allclose(encoded[0], windows.reshape(3 * count, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoded[1, :count], model.encode_audio((short, 16_000))[0], rtol=1e-4, atol=1e-5)
    assert (encoded[1, count:] == 0).all()


@pytest.mark.parametrize("too_long", ["truncate", pytest.param("chunk", marks=pytest.mark.slow), "chunk_answers"])
def test_batches_change_no_answer(model, examples, too_long):
    """Prompts of one window share one compiled program; the clip of three windows needs at most one more."""
    long = (np.concatenate([example.audio for example in examples])[:40_000], 16_000)
    assert len(long[0]) > 2 * 16_000
    clips = [(example.audio, 16_000) for example in examples] + [long, None, (examples[0].audio, 16_000)]
    options = {"num_beams": 1, "max_new_tokens": NEW, "too_long": too_long}
    alone = [model.generate([clip], "Which tone is this?", **options)[0] for clip in clips]
    before = model.num_compilations
    for size in (2, 2):
        answers = model.generate(clips, "Which tone is this?", batch_size=size, **options)
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
        assert [answer.windows for answer in answers] == [answer.windows for answer in alone]
    assert model.num_compilations - before <= (8 if too_long == "chunk" else 4)


def test_wrong_options_for_audio(model, examples):
    clip = (examples[0].audio, 16_000)
    for ask in (
        lambda o: model.generate(None, "Which?", **o),
        lambda o: model.score(clip, "Which?", "low", **o),
        lambda o: model.encode_audio(clip, **o),
    ):
        with pytest.raises(UserError, match="too_long='cut': must be one of error, truncate, chunk, chunk_answers"):
            ask({"too_long": "cut"})
        with pytest.raises(UserError, match="channels='left': must be one of first, mean"):
            ask({"channels": "left"})
    with pytest.raises(UserError, match="batch_size=0: must be at least 1"):
        model.generate(clip, "Which?", num_beams=1, max_new_tokens=NEW, batch_size=0)
    with pytest.raises(UserError, match="too_long='chunk_answers' is for generate; for score choose"):
        model.score(clip, "Which?", "low", too_long="chunk_answers")


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
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
    ours, theirs = (m.generate(clips, asked, num_beams=1, max_new_tokens=NEW) for m in (spread, model))
    assert [a.token_ids for a in ours] == [a.token_ids for a in theirs]


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        salmonn_jax.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by salmonn_jax"):
        salmonn_jax.load(tmp_path)
