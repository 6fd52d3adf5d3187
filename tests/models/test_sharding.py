"""Every module computes on eight devices what it computes on one, on every mesh. float32."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax import sharding
from salmonn_jax.configs import get_preset
from salmonn_jax.models import parameters
from salmonn_jax.models.llama import causal_mask

DEBUG = get_preset("debug").model
# With all weights that a language model can have: those of LLaMA, Qwen2 and Qwen3.
CONFIG = dataclasses.replace(
    DEBUG, llama=dataclasses.replace(DEBUG.llama, attention_bias="qkvo", qk_norm=True, mlp_bias=True)
)
STRUCTURE = parameters.model_structure(CONFIG)
MESHES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    pytest.param({"data": 8}, marks=pytest.mark.slow),
    pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
    pytest.param({"data": 2, "tensor": 4}, marks=pytest.mark.slow),
    pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def params():
    """Returns random weights, also where they start from zeros or ones, so that a misplaced weight changes the sum."""
    random = np.random.default_rng(0)
    initial = parameters.init_params(CONFIG, 0)
    return {path: x + jnp.asarray(0.1 * random.normal(size=x.shape), x.dtype) for path, x in initial.items()}


@pytest.fixture(scope="module")
def inputs():
    """Returns inputs of each module, so that an error of one module does not reach the next."""
    random = np.random.default_rng(1)
    samples, frames = CONFIG.audio.window_samples, CONFIG.audio.num_frames
    lengths = np.linspace(samples // 2, samples, 8).astype(np.int32)
    pcm = (3000 * random.normal(size=(8, samples))).astype(np.int16) * (np.arange(samples) < lengths[:, None])
    return {
        "pcm": pcm.astype(np.int16),
        "length": lengths,
        "frames": random.normal(size=(8, frames, CONFIG.encoder_hidden_size)).astype(np.float32),
        "queried": random.normal(size=(8, CONFIG.num_audio_tokens, CONFIG.qformer.hidden_size)).astype(np.float32),
        "tokens": random.integers(0, CONFIG.llama.vocab_size, (8, 12)).astype(np.int32),
        "embedded": random.normal(size=(8, 12, CONFIG.llama.hidden_size)).astype(np.float32),
        "segments": np.repeat([[1] * 7 + [2] * 3 + [0] * 2], 8, axis=0).astype(np.int32),
    }


def whisper_and_beats(model, inputs):
    encoded = model.run_encoders(inputs["pcm"], inputs["length"])
    beats = encoded["beats"]
    return encoded["whisper"].frames, jnp.where(beats.exists[..., None], beats.frames, 0)


def llama_layers(model, inputs):
    positions = jnp.broadcast_to(jnp.arange(12), (8, 12))
    return model.llama(inputs["embedded"], positions, causal_mask(inputs["segments"]), lora_scale=2.0)


# One program each: XLA on CPU may run the collectives of independent parts of one program in any order, and with few
# cores these then wait for each other for ever.
MODULES = {
    "whisper": lambda model, inputs: whisper_and_beats(model, inputs)[0],
    "beats": lambda model, inputs: whisper_and_beats(model, inputs)[1],
    "qformer": lambda model, inputs: model.qformer(model.query_tokens[...], inputs["frames"]),
    "projection": lambda model, inputs: model.projection(inputs["queried"]),
    "llama embedding": lambda model, inputs: model.llama.embed(inputs["tokens"]),
    "llama layers": llama_layers,
    "llama logits": lambda model, inputs: model.llama.logits(inputs["embedded"]),
}


def run_module(name, params, inputs, **options):
    compiled = jax.jit(lambda params, inputs: MODULES[name](STRUCTURE.merge(params), inputs), **options)
    return jax.device_get(compiled(params, inputs))


@pytest.fixture(scope="module")
def alone(params, inputs):
    return {name: run_module(name, params, inputs) for name in MODULES}


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_module_on_a_mesh_gives_what_it_gives_alone(params, inputs, alone, sizes):
    mesh = sharding.make_mesh(sizes)
    placement = sharding.Placement(mesh)
    placed = {path: jax.device_put(x, placement(path, x).sharding) for path, x in params.items()}
    cut = [x for x in placed.values() if not x.sharding.is_fully_replicated]
    assert bool(cut) == (sizes != {"data": 8})  # the rules shard some weights, or replicate all on a mesh of `data`
    spread, everywhere = jax.device_put(inputs, sharding.row_sharding(mesh)), sharding.replicated(mesh)
    for name, expected in alone.items():
        scale = np.abs(expected).max()
        assert scale > 0, name
        ours = run_module(name, placed, spread, out_shardings=everywhere)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * scale, err_msg=name)
