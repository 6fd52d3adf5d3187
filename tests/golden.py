"""The golden set: a tiny SALMONN in the original's file formats, and what the original computes with it.

The set lies beside the repository and is not ours to copy. Where it is absent the tests that need it skip; under CI
(the environment variable CI) they fail instead.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from salmonn_jax.batch import Batch
from salmonn_jax.config import BeatsConfig, LlamaConfig, LoraConfig, ModelConfig, QFormerConfig, WhisperConfig
from salmonn_jax.conversion import to_jax
from salmonn_jax.conversion.mapping import LazyParam
from salmonn_jax.models import parameters
from salmonn_jax.models.salmonn import EncoderOutput, Salmonn, answer_losses

SHARED = pathlib.Path(os.environ.get("SALMONN_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
GOLDEN_DIR = SHARED / "golden" / "salmonn_tiny"

PAD_TOKEN_ID = 640  # the class the original adds to the vocabulary

CONFIG = ModelConfig(
    whisper=WhisperConfig(d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128),
    beats=BeatsConfig(
        embed_dim=32, encoder_embed_dim=48, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_embed_dim=96
    ),
    qformer=QFormerConfig(hidden_size=48, num_attention_heads=4, intermediate_size=96),
    llama=LlamaConfig(
        vocab_size=640,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=172,
        max_position_embeddings=512,
    ),
    lora=LoraConfig(),
    activation_dtype="float32",
    frozen_dtype="float32",
)


def require(path: pathlib.Path = GOLDEN_DIR) -> None:
    """Skips the calling test where the golden set, or what else lies beside it, cannot be read; fails it under CI."""
    reason = None
    if not path.exists():
        reason = f"there is no {path} (set SALMONN_SHARED)"
    else:
        try:
            import torch  # noqa: F401
        except ImportError:
            reason = "torch is not installed, and the golden weights are torch files"
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@functools.cache
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN_DIR / "expected.npz"))


@functools.cache
def expected_json() -> dict:
    return json.loads((GOLDEN_DIR / "expected.json").read_text())


@functools.cache
def clips() -> tuple[np.ndarray, np.ndarray]:
    """The three clips as int16[3,480000], and their lengths int32[3]: first channel, cut to 30 s."""
    pcm, lengths = np.zeros((3, 480_000), np.int16), []
    for i, name in enumerate(expected_json()["wavs"]):
        samples, rate = soundfile.read(SHARED / "audio" / name, dtype="int16", always_2d=True)
        assert rate == 16_000
        samples = samples[:480_000, 0]
        pcm[i, : len(samples)] = samples
        lengths.append(len(samples))
    return pcm, np.array(lengths, np.int32)


@functools.cache
def params() -> parameters.Params:
    """Every weight of the golden model, by our paths, in float32."""
    plan = to_jax.plan_salmonn(
        GOLDEN_DIR / "whisper",
        GOLDEN_DIR / "beats.pt",
        GOLDEN_DIR / "vicuna",
        GOLDEN_DIR / "salmonn.pth",
        to_jax.SalmonnOptions(num_attention_heads=4),
    )
    return {path: jnp.asarray(full_array(p), jnp.float32) for path, p in (plan.base | plan.delta).items()}


def full_array(parameter: LazyParam) -> np.ndarray:
    """All of a parameter that is about to be converted."""
    pieces = [piece for _, piece in parameter.pieces()]
    return np.stack(pieces) if parameter.stacked else pieces[0]


def structure() -> parameters.ModelStructure:
    return parameters.model_structure(CONFIG)


def model() -> Salmonn:
    return structure().merge(params())


@functools.cache
def params_with_pad() -> parameters.Params:
    """The parameters with the [PAD] class the original adds to the vocabulary.

    Its row of the output matrix is random, frozen and in no checkpoint, yet it takes part in every softmax. It is
    what solves the stored [PAD] logits for our hidden states: 416 equations for 64 numbers, without a remainder.
    """
    hidden = [
        hidden_states(model(), select_clip(encode_clips(clips()[1]), clip), golden_batch([clip]))[0]
        for clip in range(3)
    ]
    hidden = np.concatenate(hidden).astype(np.float64)
    logits = np.concatenate([expected()[f"logits_{clip}"][:, PAD_TOKEN_ID] for clip in range(3)]).astype(np.float64)
    row, *_ = np.linalg.lstsq(hidden, logits)
    np.testing.assert_allclose(hidden @ row, logits, atol=1e-5)
    kernel = params()["llama/lm_head/kernel"]
    return params() | {
        "llama/lm_head/kernel": jnp.concatenate([kernel, jnp.asarray(row, jnp.float32)[:, None]], axis=1)
    }


def select_clip(frames: EncoderOutput, clip: int) -> EncoderOutput:
    """The frames of one clip of the three."""
    return jax.tree.map(lambda x: x[clip : clip + 1], frames)


def encode_clips(padded: np.ndarray) -> EncoderOutput:
    """The encoders' frames of the three clips; `padded` int32[3] as in `Salmonn.run_encoders`."""
    pcm, length = clips()
    return jax.jit(lambda model: model.run_encoders(pcm, length, padded))(model())


def hidden_states(model: Salmonn, frames: EncoderOutput, batch: Batch):
    """Last hidden states float32[R,S,D] of a batch, from the encoders' frames and without dropout.

    As in the original, padding between prompt and answer is not seen but sees: the first answer token of a row with
    a shorter prompt is predicted from a [PAD].
    """
    x = model.merge_audio_tokens(batch.tokens, batch.audio_slot, model.compute_audio_tokens(frames))
    width = batch.tokens.shape[1]
    mask = jnp.tril(jnp.ones((width, width), bool)) & (batch.segments[:, None, :] > 0)
    return model.llama(x, batch.positions, mask, lora_scale=CONFIG.lora.scale)[0]


def forward(model: Salmonn, frames: EncoderOutput, batch: Batch):
    """Logits, losses and counted tokens of a batch, from the encoders' frames and without dropout."""
    logits = model.llama.logits(hidden_states(model, frames, batch))
    return logits, *answer_losses(logits, batch)


def to_original_gradients(gradient: parameters.Params) -> dict[str, jax.Array]:
    """The gradients that are stored, from ours: by the original's names and in its shapes."""
    named = {
        "speech_query_tokens": gradient["query_tokens"][None],
        "ln_audio.weight": gradient["ln_audio/scale"],
        "speech_llama_proj.weight": gradient["projection/kernel"].T,
    }
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            key = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{name}.lora_B.default.weight"
            named[key] = gradient[f"llama/layers/{name}/lora_b"][layer].T
    return named


def expected_gradients() -> dict[str, np.ndarray]:
    return {key.removeprefix("grad:"): value for key, value in expected().items() if key.startswith("grad:")}


def pad_embedding() -> jax.Array:
    """The [PAD] row of the embedding, float32[64]: random too, and in no checkpoint (see `tests.golden_pad`)."""
    return jnp.asarray(json.loads((pathlib.Path(__file__).parent / "golden_pad.json").read_text()), jnp.float32)


def batch_loss(trainable: parameters.Params, frozen: parameters.Params, frames: EncoderOutput, pad: jax.Array):
    """Loss of the golden batch with `pad` as the [PAD] embedding, and its right and counted answer tokens."""
    embedding = jnp.concatenate([frozen["llama/embedding"], pad[None]])
    batch = golden_batch([0, 1, 2])
    model = structure().merge(trainable, frozen, {"llama/embedding": embedding})
    logits, losses, counted = forward(model, frames, batch)
    right = (logits[:, :-1].argmax(-1) == batch.tokens[:, 1:]) & counted
    return losses.sum() / counted.sum(), (right.sum(), counted.sum())


def golden_batch(clip_indices: list[int]) -> Batch:
    """The rows of these clips as the original lays them out: answers start behind the longest prompt of the batch."""
    ids = [expected_json()["token_ids"][c] for c in clip_indices]
    after = max(len(i["after"]) for i in ids)
    width = max(1 + len(i["before"]) + 88 + after + len(i["target"]) for i in ids)
    shape = (len(clip_indices), width)
    tokens, segments = np.full(shape, PAD_TOKEN_ID, np.int32), np.zeros(shape, np.int32)
    slot, mask = np.full(shape, -1, np.int32), np.zeros(shape, bool)
    for row, i in enumerate(ids):
        start = 1 + len(i["before"])
        tokens[row, :start] = [1, *i["before"]]
        slot[row, start : start + 88] = row * 88 + np.arange(88)
        prompt = start + 88 + len(i["after"])
        tokens[row, start + 88 : prompt] = i["after"]
        answer = start + 88 + after
        end = answer + len(i["target"])
        tokens[row, answer:end] = i["target"]
        mask[row, answer:end] = True
        segments[row, :prompt] = segments[row, answer:end] = 1
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
    pcm, length = (x[clip_indices] for x in clips())
    return Batch(
        pcm,
        length,
        tokens,
        positions,
        segments,
        mask,
        slot,
        np.zeros(len(clip_indices), np.int32),
        np.zeros((len(clip_indices), 0), np.int32),
    )
