"""Decoding through `Model`: seeds, adapters, batches, compilations, memory and meshes, on a debug run."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import salmonn_jax
from salmonn_jax.config import GenerationConfig
from salmonn_jax.decoding import memory
from salmonn_jax.decoding.batching import bucket_length
from salmonn_jax.errors import UserError
from salmonn_jax.sharding import make_mesh

NEW = 8  # tokens to generate
BEAMS = GenerationConfig(num_beams=3, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def model(debug_run):
    return salmonn_jax.load(debug_run)


@pytest.fixture(scope="module")
def clips():
    """Clips of several lengths, and prompts without a clip."""
    rng = np.random.default_rng(0)
    sizes = (16_000, None, 9_000, 4_000, 16_000, None, 12_345, 16_000)
    return [None if n is None else (rng.integers(-9000, 9000, n).astype(np.int16), 16_000) for n in sizes]


PROMPTS = [
    "Which?",
    "Which tone is this?",
    "a",
    "Which tone is this, low or high?",
    "b",
    "c d",
    "Which?",
    "What is it?",
]


@pytest.fixture(scope="module")
def requests(model, clips):
    return [model.make_request(c, p, max_new_tokens=NEW) for c, p in zip(clips, PROMPTS, strict=True)]


@pytest.fixture(scope="module")
def answers(model, requests):
    return model.answer(requests, BEAMS, batch_size=8)


def ids(answers) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def test_batch_sizes_and_order_change_no_answer(model, requests, answers):
    for batch_size in (1, 3):
        assert ids(model.answer(requests, BEAMS, batch_size=batch_size)) == ids(answers)
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    shuffled = model.answer([requests[i] for i in order], BEAMS, batch_size=8)
    assert ids(shuffled) == [answers[i].token_ids for i in order]
    assert [answer.score for answer in shuffled] == [answers[i].score for i in order]


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_eight_devices(debug_run, requests, answers, sizes):
    """Weights, batches and KV cache are on the mesh."""
    spread = salmonn_jax.load(debug_run, mesh=make_mesh(sizes))
    assert ids(spread.answer(requests, BEAMS, batch_size=3)) == ids(answers)


def test_compilations_are_bounded(model, clips):
    """Each of three buckets has a program for the prompts and one for decoding."""
    fresh = copy.copy(model)
    for name in ("_embed_prompts", "_decode"):
        fresh.__dict__.pop(name, None)
    prompts = [f"{'x ' * n}?" for n in range(2, 24, 3)]
    lengths = [len(fresh.make_request(None, prompt, max_new_tokens=NEW).segments[0].tokens) for prompt in prompts]
    buckets = {bucket_length(length, 64 - NEW) for length in lengths}
    assert len(buckets) == 3 < len(set(lengths))
    fresh.generate([None] * len(prompts), prompts, num_beams=1, max_new_tokens=NEW, batch_size=2)
    assert fresh.num_compilations == 2 * 3
    for multiplier in (0.5, 0.7, 1.0):
        options = {"num_beams": 1, "max_new_tokens": NEW, "batch_size": 2, "lora_multiplier": multiplier}
        fresh.generate([None] * 3, prompts[:3], **options)
    assert fresh.num_compilations == 2 * 3


def test_bucket_lengths():
    assert [bucket_length(n, 1000) for n in (1, 32, 33, 48, 49, 64, 65, 97, 129, 200, 999)] == [
        *(32, 32, 48, 48, 64, 64, 96, 128, 192, 256, 1000)
    ]


def test_without_adapters_the_answer_is_that_of_the_base_model(model, clips):
    """The adapters are strong here, so that their scale matters, or broken."""
    strong, base, broken = (copy.copy(model) for _ in range(3))
    for changed, value in ((strong, 1.0), (base, 0.0), (broken, np.nan)):
        changed.module = jax.tree.map(lambda x: x, model.module)
        for name in model.config.lora.target_modules:
            lora_b = getattr(model.module.llama.layers, name).lora_b[...]
            getattr(changed.module.llama.layers, name).lora_b = nnx.Param(jnp.full_like(lora_b, value))
    options = {"num_beams": 1, "max_new_tokens": NEW}
    asked = clips[:3], PROMPTS[:3]
    off, without = strong.generate(*asked, lora_multiplier=0, **options), base.generate(*asked, **options)
    assert off == without == broken.generate(*asked, lora_multiplier=0, **options)
    with pytest.raises(UserError, match="scores that are not finite"):
        broken.generate(*asked, **options)
    on, half = strong.generate(*asked, **options), strong.generate(*asked, lora_multiplier=0.5, **options)
    assert len({answer.score for answer in (off[0], half[0], on[0])}) == 3


def with_strong_adapters(model, changed_layers=slice(None), value=1.0):
    """Returns the model with `lora_b` of some layers set to a value, and that of the others to zero."""
    changed = copy.copy(model)
    changed.module = jax.tree.map(lambda x: x, model.module)
    for name in model.config.lora.target_modules:
        lora_b = getattr(model.module.llama.layers, name).lora_b[...]
        strong = jnp.zeros_like(lora_b).at[changed_layers].set(value)
        getattr(changed.module.llama.layers, name).lora_b = nnx.Param(strong)
    return changed


def test_each_layer_has_its_multiplier(model, clips):
    """A layer with the multiplier 0 is as one whose adapters are zero."""
    options = {"num_beams": 1, "max_new_tokens": NEW}
    asked = clips[:3], PROMPTS[:3]
    strong = with_strong_adapters(model)
    second_only = with_strong_adapters(model, slice(1, 2)).generate(*asked, **options)
    assert strong.generate(*asked, lora_multiplier=[0.0, 1.0], **options) == second_only
    whole = strong.generate(*asked, **options)
    assert strong.generate(*asked, lora_multiplier=[1.0, 1.0], **options) == whole != second_only
    assert strong.generate(*asked, lora_multiplier=(0, 0), **options) == strong.generate(
        *asked, lora_multiplier=0, **options
    )
    with pytest.raises(UserError, match="lora_multiplier has 3 values, and the language model has 2 layers"):
        strong.generate(*asked, lora_multiplier=[1.0, 1.0, 1.0], **options)


def test_prompts_without_audio_may_be_answered_by_the_base_model(model, clips):
    strong, broken = with_strong_adapters(model), with_strong_adapters(model, value=np.nan)
    options = {"num_beams": 2, "max_new_tokens": NEW, "batch_size": 4}
    asked = [clips[0], None, clips[2], None], PROMPTS[:4]
    gated = strong.generate(*asked, lora_gate="text_only_off", **options)
    adapted, base = strong.generate(*asked, **options), strong.generate(*asked, lora_multiplier=0, **options)
    for index, expected in enumerate((adapted, base, adapted, base)):
        assert gated[index].token_ids == expected[index].token_ids
        assert gated[index].score == pytest.approx(expected[index].score, rel=1e-6)
    assert adapted[1].score != base[1].score
    text = [None, None], PROMPTS[:2]
    assert ids(broken.generate(*text, lora_gate="text_only_off", **options)) == ids(
        strong.generate(*text, lora_multiplier=0, **options)
    )


def test_sampling_depends_on_the_seed_and_the_request_alone(model, clips):
    options = {"num_beams": 1, "do_sample": True, "max_new_tokens": NEW, "temperature": 1.5}
    first = model.generate(clips, PROMPTS, seed=1, **options)
    backwards = model.generate(clips[::-1], PROMPTS[::-1], seed=1, batch_size=3, **options)
    assert ids(backwards[::-1]) == ids(first)
    assert ids(model.generate(clips, PROMPTS, seed=2, **options)) != ids(first)
    assert len({tuple(answer.token_ids) for answer in first}) == len(clips)


def test_finish_reason_and_text(model, clips):
    (cut,) = model.generate(clips[0], PROMPTS[0], max_new_tokens=1)
    assert (cut.finish_reason, cut.num_tokens) == ("length", 1)
    stop = model.tokenizer.eos_token_id
    sampled = [
        answer
        for seed in range(8)
        for answer in model.generate(
            clips, PROMPTS, num_beams=1, do_sample=True, max_new_tokens=NEW, seed=seed, temperature=2.0
        )
    ]
    assert {answer.finish_reason for answer in sampled} == {"stop", "length"}
    specials = model.tokenizer.basic_token_ids
    assert any(specials & set(answer.token_ids[:-1]) for answer in sampled)
    for answer in sampled:
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == stop else "length")
        assert stop not in answer.token_ids[:-1]
        assert answer.num_tokens == len(answer.token_ids) <= NEW
        assert answer.text == model.tokenizer.decode([i for i in answer.token_ids if i not in specials])
        assert "⁇" not in answer.text


def test_batch_size_from_memory(model, requests, monkeypatch):
    full = model.max_batch_size(BEAMS, 32)
    assert full == 32
    weights = memory.weight_bytes(model.module)
    row = memory.row_bytes(model.module, BEAMS, 32, 1)
    monkeypatch.setattr(memory, "device_limit", lambda device: weights + 5 * row)
    assert model.max_batch_size(BEAMS, 32) == 4
    monkeypatch.setattr(memory, "device_limit", lambda device: weights + row // 2)
    with pytest.raises(
        UserError, match=r"a prompt of 32 tokens with 3 beams and 8 new tokens needs .* GB beside"
    ) as error:
        model.answer(requests[:1], BEAMS)
    assert "\n" not in str(error.value)


def test_requests_of_another_limit_are_refused(model, requests):
    with pytest.raises(UserError, match="make the requests with the same max_new_tokens"):
        model.answer(requests, GenerationConfig(max_new_tokens=60))
