"""Decoding as transformers 5 does, with a random LLaMA whose answers end at many lengths."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from salmonn_jax.config import GenerationConfig, LlamaConfig, LoraConfig
from salmonn_jax.decoding.decoder import EmbeddedPrompts
from salmonn_jax.decoding.logits import sample
from salmonn_jax.decoding.options import decoding_options
from salmonn_jax.models.llama import Llama
from tests.decoding.prompts import Answer, decode_prompts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, STOPS, PROMPT_LENGTHS, LIMIT = 64, (2, 7), (3, 9, 5, 12, 7, 4, 11, 6), 12
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)


@functools.cache
def their_model():
    """A LLaMA of transformers, with weights that make few near ties."""
    torch.set_num_threads(1)  # the model is tiny
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        **{
            name: getattr(CONFIG, name)
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "intermediate_size",
                "max_position_embeddings",
                "rms_norm_eps",
            )
        },
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1.3 / parameter.shape[1] ** 0.5)
        model.model.embed_tokens.weight.normal_(0, 1)
        model.lm_head.weight[list(STOPS)] *= 1.3
    return model


@functools.cache
def our_model() -> Llama:
    """The same model as a `Llama`."""
    weights = {name: value.numpy() for name, value in their_model().state_dict().items()}
    model = Llama(CONFIG, LoraConfig(), rngs=nnx.Rngs(0))

    def stacked(name: str) -> np.ndarray:
        return np.stack([weights[f"model.layers.{i}.{name}.weight"] for i in range(CONFIG.num_hidden_layers)])

    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(model.layers, name).kernel = nnx.Param(jnp.array(stacked(f"self_attn.{name}").swapaxes(1, 2)))
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(model.layers, name).kernel = nnx.Param(jnp.array(stacked(f"mlp.{name}").swapaxes(1, 2)))
    model.layers.attention_norm.scale = nnx.Param(jnp.array(stacked("input_layernorm")))
    model.layers.ffn_norm.scale = nnx.Param(jnp.array(stacked("post_attention_layernorm")))
    model.norm.scale = nnx.Param(jnp.array(weights["model.norm.weight"]))
    model.embedding = nnx.Param(jnp.array(weights["model.embed_tokens.weight"]))
    model.lm_head.kernel = nnx.Param(jnp.array(weights["lm_head.weight"].T))
    return model


@functools.cache
def prompts() -> np.ndarray:
    """Returns embedded prompts, padded at the end."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(0, 1, (len(PROMPT_LENGTHS), max(PROMPT_LENGTHS), CONFIG.hidden_size)).astype(np.float32)
    for row, length in enumerate(PROMPT_LENGTHS):
        embeddings[row, length:] = 0
    return embeddings


def theirs(config: GenerationConfig) -> list[Answer]:
    """Returns the answers of transformers to the prompts.

    They are padded at the beginning, except that with a repetition penalty each is alone: greedy decoding of
    transformers 5.24 then gives other answers in a batch.
    """
    if config.repetition_penalty != 1.0:
        return [their_answers(config, [row])[0] for row in range(len(PROMPT_LENGTHS))]
    return their_answers(config, list(range(len(PROMPT_LENGTHS))))


def their_answers(config: GenerationConfig, rows: list[int]) -> list[Answer]:
    width = max(PROMPT_LENGTHS[row] for row in rows)
    embeddings = np.zeros((len(rows), width, CONFIG.hidden_size), np.float32)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        embeddings[i, width - PROMPT_LENGTHS[row] :] = prompts()[row, : PROMPT_LENGTHS[row]]
        mask[i, width - PROMPT_LENGTHS[row] :] = 1
    beam_settings = {"length_penalty": config.length_penalty, "early_stopping": config.early_stopping}
    result = their_model().generate(
        inputs_embeds=torch.tensor(embeddings),
        attention_mask=torch.tensor(mask),
        max_new_tokens=config.max_new_tokens,
        num_beams=config.num_beams,
        do_sample=False,
        repetition_penalty=config.repetition_penalty,
        min_new_tokens=config.min_length,
        eos_token_id=list(STOPS),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **(beam_settings if config.num_beams > 1 else {}),
    )
    scores = [np.nan] * len(rows) if config.num_beams == 1 else result.sequences_scores.tolist()
    answers = []
    for ids, score in zip(result.sequences.tolist(), scores, strict=True):
        end = next((i + 1 for i, token in enumerate(ids) if token in STOPS), len(ids))
        answers.append(Answer(ids[:end], score))
    return answers


def ours(config: GenerationConfig, rows: list[int] | None = None) -> list[Answer]:
    rows = list(range(len(PROMPT_LENGTHS))) if rows is None else rows
    batch = EmbeddedPrompts(
        jnp.array(prompts()[rows]),
        jnp.array(np.array(PROMPT_LENGTHS, np.int32)[rows]),
        jnp.zeros((len(rows), 2), jnp.uint32),
        jnp.zeros(len(rows), bool),
    )
    return decode_prompts(our_model(), batch, config, stop_token_ids=STOPS, start_token_id=None)


def settings(**values) -> GenerationConfig:
    return GenerationConfig(compat="hf5", max_new_tokens=LIMIT, lora_multiplier=0.0, **values)


def grid(beams: tuple[int, ...], penalties: tuple[float, ...], min_lengths: tuple[int, ...]) -> list[GenerationConfig]:
    return [
        settings(
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            repetition_penalty=penalty,
            min_length=min_length,
        )
        for num_beams, length_penalty, early_stopping, penalty, min_length in itertools.product(
            beams, (-1.0, 0.0, 1.0, 2.0), (False, True, "never"), penalties, min_lengths
        )
    ]


GREEDY = [
    settings(num_beams=1, repetition_penalty=penalty, min_length=n) for penalty, n in ((1.0, 0), (1.0, 5), (1.3, 1))
]
FEW = [
    *GREEDY,
    *grid((4,), (1.0,), (0,)),
    *(settings(num_beams=2, repetition_penalty=1.3, min_length=n, length_penalty=p) for n, p in ((1, -1.0), (5, 1.0))),
]
ALL = [settings(num_beams=1, repetition_penalty=1.3, min_length=n) for n in (0, 1, 5)] + grid(
    (2, 4), (1.0, 1.3), (0, 5)
)


def assert_equal(configs: list[GenerationConfig]) -> list[Answer]:
    found = []
    for config in configs:
        for mine, other in zip(ours(config), theirs(config), strict=True):
            assert mine.ids == other.ids, config
            if config.num_beams > 1:
                assert mine.score == pytest.approx(other.score, rel=1e-4), config
            found.append(mine)
    return found


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
def test_grid():
    answers = assert_equal(FEW)
    assert len({len(answer.ids) for answer in answers}) >= 8
    assert {answer.ids[-1] for answer in answers} >= set(STOPS)
    assert any(answer.ids[-1] not in STOPS for answer in answers)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
def test_whole_grid():
    assert_equal(ALL)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 1, "max_new_tokens": 1},
        {"num_beams": 4, "max_new_tokens": 1},
        {"num_beams": VOCAB + 6, "max_new_tokens": 3},  # the first step has fewer candidates than beams
        {"num_beams": 3, "max_new_tokens": 4, "min_length": 4},  # no answer may end
    ],
    ids=str,
)
def test_odd_sizes(changes):
    assert_equal([dataclasses.replace(settings(num_beams=1), **changes)])


def test_the_smallest_temperature_is_greedy():
    config = settings(num_beams=1, do_sample=True, temperature=1e-6)
    assert [a.ids for a in ours(config)] == [a.ids for a in ours(settings(num_beams=1))]


def test_batches_of_other_sizes():
    config = settings(num_beams=4)
    together = ours(config)
    for rows in ([1], [6, 3, 1], [7, 6, 5, 4, 3, 2, 1, 0]):
        for row, answer in zip(rows, ours(config, rows), strict=True):
            assert answer.ids == together[row].ids
            assert answer.score == pytest.approx(together[row].score, rel=1e-5)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.5, 5, 1.0), (1.0, 0, 0.6), (1.3, 8, 0.8), (1.0, 50, 1.0)],  # 50: all 12 tokens
)
def test_sampling_draws_from_their_distribution(temperature, top_k, top_p):
    """Each of 20,000 rows draws once; the frequencies are the probabilities of transformers' processors."""
    logits = np.random.default_rng(1).normal(0, 2, 12).astype(np.float32)
    config = GenerationConfig(num_beams=1, do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    _, numbers = decoding_options(config, stop_token_ids=STOPS, start_token_id=None)
    keys = np.random.default_rng(2).integers(0, 2**32, (20_000, 2), np.uint32)
    drawn = jax.jit(sample)(jnp.tile(logits, (len(keys), 1)), keys, 3, numbers)
    scores = torch.tensor(logits)[None]
    for processor in (
        transformers.TemperatureLogitsWarper(temperature),
        *([transformers.TopKLogitsWarper(top_k)] if top_k else []),
        *([transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ):
        scores = processor(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    found = np.bincount(np.asarray(drawn), minlength=len(logits)) / len(keys)
    assert (found[expected == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=0.015)
