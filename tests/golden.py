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
from salmonn_jax.models import parameters
from salmonn_jax.models.salmonn import Frames, Salmonn, answer_losses

SHARED = pathlib.Path(os.environ.get("SALMONN_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
FOLDER = SHARED / "golden" / "salmonn_tiny"

PAD = 640  # the class the original adds to the vocabulary

CONFIG = ModelConfig(
    whisper=WhisperConfig(width=64, layers=2, heads=4, ffn=128),
    beats=BeatsConfig(patch_width=32, width=48, layers=2, heads=4, ffn=96),
    qformer=QFormerConfig(width=48, heads=4, ffn=96),
    llama=LlamaConfig(vocabulary=640, width=64, layers=2, heads=4, kv_heads=4, ffn=172, context=512),
    lora=LoraConfig(),
    activation_dtype="float32",
    frozen_dtype="float32",
)


def require() -> None:
    """Skips the calling test where the golden set cannot be read; fails it under CI."""
    reason = None
    if not FOLDER.exists():
        reason = f"the golden set is not at {FOLDER} (set SALMONN_SHARED)"
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
    return dict(np.load(FOLDER / "expected.npz"))


@functools.cache
def texts() -> dict:
    return json.loads((FOLDER / "expected.json").read_text())


@functools.cache
def clips() -> tuple[np.ndarray, np.ndarray]:
    """The three clips as int16[3,480000], and their lengths int32[3]: first channel, cut to 30 s."""
    pcm, lengths = np.zeros((3, 480_000), np.int16), []
    for i, name in enumerate(texts()["wavs"]):
        samples, rate = soundfile.read(SHARED / "audio" / name, dtype="int16", always_2d=True)
        assert rate == 16_000
        samples = samples[:480_000, 0]
        pcm[i, : len(samples)] = samples
        lengths.append(len(samples))
    return pcm, np.array(lengths, np.int32)


@functools.cache
def params() -> parameters.Params:
    """Every weight of the golden model, by our paths; fails if one is missing or left over."""
    import torch

    def read(path):
        return torch.load(FOLDER / path, map_location="cpu", weights_only=True)

    def floats(tensors):
        return {k: v.to(torch.float32).numpy() for k, v in tensors.items()}

    values: dict[str, np.ndarray] = {}
    _whisper(floats(read("whisper/pytorch_model.bin")), values)
    _beats(floats(read("beats.pt")["model"]), values)
    _llama(floats(read("vicuna/pytorch_model.bin")), values)
    _delta(floats(read("salmonn.pth")["model"]), values)
    shapes = structure().shapes
    assert set(shapes) == set(values), set(shapes) ^ set(values)
    for path, leaf in shapes.items():
        assert leaf.shape == values[path].shape, (path, leaf.shape, values[path].shape)
    return {path: jnp.asarray(value) for path, value in values.items()}


def structure() -> parameters.Structure:
    return parameters.structure(CONFIG)


def model() -> Salmonn:
    return structure().merge(params())


@functools.cache
def params_with_pad() -> parameters.Params:
    """The parameters with the [PAD] class the original adds to the vocabulary.

    Its row of the output matrix is random, frozen and in no checkpoint, yet it takes part in every softmax. It is
    what solves the stored [PAD] logits for our hidden states: 416 equations for 64 numbers, without a remainder.
    """
    hidden = [hidden_states(model(), one(frames(clips()[1]), clip), text_batch([clip]))[0] for clip in range(3)]
    hidden = np.concatenate(hidden).astype(np.float64)
    logits = np.concatenate([expected()[f"logits_{clip}"][:, PAD] for clip in range(3)]).astype(np.float64)
    row, *_ = np.linalg.lstsq(hidden, logits)
    np.testing.assert_allclose(hidden @ row, logits, atol=1e-5)
    kernel = params()["llama/lm_head/kernel"]
    return params() | {
        "llama/lm_head/kernel": jnp.concatenate([kernel, jnp.asarray(row, jnp.float32)[:, None]], axis=1)
    }


def one(frames: Frames, clip: int) -> Frames:
    """The frames of one clip of the three."""
    return jax.tree.map(lambda x: x[clip : clip + 1], frames)


def frames(padded: np.ndarray) -> Frames:
    """The encoders' frames of the three clips; `padded` int32[3] as in `Salmonn.encode_frames`."""
    pcm, length = clips()
    return jax.jit(lambda model: model.encode_frames(pcm, length, padded))(model())


def hidden_states(model: Salmonn, frames: Frames, batch: Batch):
    """Last hidden states float32[R,S,D] of a batch, from the encoders' frames and without dropout.

    As in the original, padding between prompt and answer is not seen but sees: the first answer token of a row with
    a shorter prompt is predicted from a [PAD].
    """
    x = model.splice(batch.tokens, batch.audio_slot, model.audio_tokens(frames))
    width = batch.tokens.shape[1]
    mask = jnp.tril(jnp.ones((width, width), bool)) & (batch.segments[:, None, :] > 0)
    return model.llama(x, batch.positions, mask, lora_scale=CONFIG.lora.scale)[0]


def forward(model: Salmonn, frames: Frames, batch: Batch):
    """Logits, losses and counted tokens of a batch, from the encoders' frames and without dropout."""
    logits = model.llama.logits(hidden_states(model, frames, batch))
    return logits, *answer_losses(logits, batch)


def named_gradients(gradient: parameters.Params) -> dict[str, jax.Array]:
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


def stored_gradients() -> dict[str, np.ndarray]:
    return {key.removeprefix("grad:"): value for key, value in expected().items() if key.startswith("grad:")}


def pad_embedding() -> jax.Array:
    """The [PAD] row of the embedding, float32[64]: random too, and in no checkpoint (see `tests.golden_pad`)."""
    return jnp.asarray(json.loads((pathlib.Path(__file__).parent / "golden_pad.json").read_text()), jnp.float32)


def batch_loss(trainable: parameters.Params, frozen: parameters.Params, frames: Frames, pad: jax.Array):
    """Loss of the golden batch with `pad` as the [PAD] embedding, and its right and counted answer tokens."""
    embedding = jnp.concatenate([frozen["llama/embedding"], pad[None]])
    batch = text_batch([0, 1, 2])
    model = structure().merge(trainable, frozen, {"llama/embedding": embedding})
    logits, losses, counted = forward(model, frames, batch)
    right = (logits[:, :-1].argmax(-1) == batch.tokens[:, 1:]) & counted
    return losses.sum() / counted.sum(), (right.sum(), counted.sum())


def text_batch(chosen: list[int]) -> Batch:
    """The rows of these clips as the original lays them out: answers start behind the longest prompt of the batch."""
    ids = [texts()["token_ids"][c] for c in chosen]
    after = max(len(i["after"]) for i in ids)
    width = max(1 + len(i["before"]) + 88 + after + len(i["target"]) for i in ids)
    shape = (len(chosen), width)
    tokens, segments = np.full(shape, PAD, np.int32), np.zeros(shape, np.int32)
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
    pcm, length = (x[chosen] for x in clips())
    return Batch(
        pcm,
        length,
        tokens,
        positions,
        segments,
        mask,
        slot,
        np.zeros(len(chosen), np.int32),
        np.zeros((len(chosen), 0), np.int32),
    )


def _put(values, target, tensors, source, leaves):
    """Copies `source`'s weight and bias to `target`; `leaves` names the pair, kernels are transposed."""
    for kind, leaf in zip(("weight", "bias"), leaves, strict=True):
        if leaf:
            value = tensors[f"{source}.{kind}"]
            values[f"{target}/{leaf}"] = value.T if leaf == "kernel" else value


def _stacked(values, target, tensors, source, layers, leaves):
    """As `_put`, for every layer: `source` holds {} for the layer's number."""
    for kind, leaf in zip(("weight", "bias"), leaves, strict=True):
        if leaf:
            parts = [tensors[f"{source.format(i)}.{kind}"] for i in range(layers)]
            values[f"{target}/{leaf}"] = np.stack([p.T if leaf == "kernel" else p for p in parts])


LINEAR, NORM, NO_BIAS = ("kernel", "bias"), ("scale", "bias"), ("kernel", None)


def _whisper(tensors, values):
    tensors = {k.removeprefix("model.").removeprefix("encoder."): v for k, v in tensors.items() if "decoder" not in k}
    for conv in ("conv1", "conv2"):
        values[f"whisper/{conv}/kernel"] = tensors[f"{conv}.weight"].transpose(2, 1, 0)
        values[f"whisper/{conv}/bias"] = tensors[f"{conv}.bias"]
    values["whisper/positions"] = tensors["embed_positions.weight"]
    _put(values, "whisper/norm", tensors, "layer_norm", NORM)
    for ours, theirs, leaves in (
        ("attention_norm", "self_attn_layer_norm", NORM),
        ("q_proj", "self_attn.q_proj", LINEAR),
        ("k_proj", "self_attn.k_proj", NO_BIAS),
        ("v_proj", "self_attn.v_proj", LINEAR),
        ("out_proj", "self_attn.out_proj", LINEAR),
        ("ffn_norm", "final_layer_norm", NORM),
        ("fc1", "fc1", LINEAR),
        ("fc2", "fc2", LINEAR),
    ):
        _stacked(values, f"whisper/layers/{ours}", tensors, "layers.{}." + theirs, 2, leaves)


def _beats(tensors, values):
    values["beats/patch_kernel"] = tensors["patch_embedding.weight"].reshape(32, -1).T
    _put(values, "beats/patch_norm", tensors, "layer_norm", NORM)
    _put(values, "beats/patch_proj", tensors, "post_extract_proj", LINEAR)
    values["beats/positional_conv/direction"] = tensors["encoder.pos_conv.0.weight_v"].transpose(2, 1, 0)
    values["beats/positional_conv/magnitude"] = tensors["encoder.pos_conv.0.weight_g"].reshape(-1)
    values["beats/positional_conv/bias"] = tensors["encoder.pos_conv.0.bias"]
    _put(values, "beats/norm", tensors, "encoder.layer_norm", NORM)
    layer = "encoder.layers.{}."
    values["beats/relative_bias"] = tensors[layer.format(0) + "self_attn.relative_attention_bias.weight"]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        _stacked(values, f"beats/layers/{name}", tensors, layer + "self_attn." + name, 2, LINEAR)
    _stacked(values, "beats/layers/gate", tensors, layer + "self_attn.grep_linear", 2, LINEAR)
    values["beats/layers/gate_scale"] = np.stack(
        [tensors[layer.format(i) + "self_attn.grep_a"].reshape(-1) for i in range(2)]
    )
    _stacked(values, "beats/layers/attention_norm", tensors, layer + "self_attn_layer_norm", 2, NORM)
    _stacked(values, "beats/layers/fc1", tensors, layer + "fc1", 2, LINEAR)
    _stacked(values, "beats/layers/fc2", tensors, layer + "fc2", 2, LINEAR)
    _stacked(values, "beats/layers/ffn_norm", tensors, layer + "final_layer_norm", 2, NORM)


def _llama(tensors, values):
    values["llama/embedding"] = tensors["model.embed_tokens.weight"]
    values["llama/norm/scale"] = tensors["model.norm.weight"]
    _put(values, "llama/lm_head", tensors, "lm_head", NO_BIAS)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        _stacked(values, f"llama/layers/{name}", tensors, "model.layers.{}.self_attn." + name, 2, NO_BIAS)
    for name in ("gate_proj", "up_proj", "down_proj"):
        _stacked(values, f"llama/layers/{name}", tensors, "model.layers.{}.mlp." + name, 2, NO_BIAS)
    for ours, theirs in (("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
        _stacked(values, f"llama/layers/{ours}", tensors, "model.layers.{}." + theirs, 2, ("scale", None))


def _delta(tensors, values):
    values["query_tokens"] = tensors["speech_query_tokens"][0]
    _put(values, "ln_speech", tensors, "ln_speech", NORM)
    _put(values, "ln_audio", tensors, "ln_audio", NORM)
    _put(values, "projection", tensors, "speech_llama_proj", LINEAR)
    for name in ("q_proj", "v_proj"):
        source = "llama_model.base_model.model.model.layers.{}.self_attn." + name + ".lora_{}.default.weight"
        for letter in "AB":
            values[f"llama/layers/{name}/lora_{letter.lower()}"] = np.stack(
                [tensors[source.format(i, letter)].T for i in range(2)]
            )
    bert = "speech_Qformer.bert."
    _put(values, "qformer/norm", tensors, bert + "embeddings.LayerNorm", NORM)
    layer = bert + "encoder.layer.{}."
    for ours, theirs in (("attention", "attention"), ("cross_attention", "crossattention")):
        for name in ("query", "key", "value"):
            _stacked(values, f"qformer/layers/{ours}/{name}", tensors, f"{layer}{theirs}.self.{name}", 2, LINEAR)
        _stacked(values, f"qformer/layers/{ours}/dense", tensors, f"{layer}{theirs}.output.dense", 2, LINEAR)
        _stacked(values, f"qformer/layers/{ours}/norm", tensors, f"{layer}{theirs}.output.LayerNorm", 2, NORM)
    _stacked(values, "qformer/layers/intermediate", tensors, layer + "intermediate_query.dense", 2, LINEAR)
    _stacked(values, "qformer/layers/output", tensors, layer + "output_query.dense", 2, LINEAR)
    _stacked(values, "qformer/layers/norm", tensors, layer + "output_query.LayerNorm", 2, NORM)
