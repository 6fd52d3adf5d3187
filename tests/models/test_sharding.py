"""Tests that every module computes the same on eight devices as on one, for several meshes, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax import sharding
from salmonn_jax.configs import get_config
from salmonn_jax.models import parameters
from salmonn_jax.models.llama import causal_mask

CONFIG = get_config("debug").model
STRUCTURE = parameters.model_structure(CONFIG)
MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "tensor": 4},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


@pytest.fixture(scope="module")
def params():
    """Returns random weights. Those that start as zeros or ones are randomised too, to make wrong shardings visible."""
    rng = np.random.default_rng(0)
    initial = parameters.init_params(CONFIG, 0)
    return {path: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype) for path, x in initial.items()}


@pytest.fixture(scope="module")
def inputs():
    """Returns separate random inputs for each module, so that an error in one module does not affect the others."""
    rng = np.random.default_rng(1)
    num_samples, num_frames = CONFIG.audio.window_samples, CONFIG.audio.whisper_frames
    lengths = np.linspace(num_samples // 2, num_samples, 8).astype(np.int32)
    pcm = (3000 * rng.normal(size=(8, num_samples))).astype(np.int16) * (np.arange(num_samples) < lengths[:, None])
    encoder_hidden_size = CONFIG.whisper.d_model + CONFIG.beats.encoder_embed_dim
    return {
        "pcm": pcm.astype(np.int16),
        "length": lengths,
        "frames": rng.normal(size=(8, num_frames, encoder_hidden_size)).astype(np.float32),
        "qformer_output": rng.normal(size=(8, CONFIG.num_audio_tokens, CONFIG.qformer.hidden_size)).astype(np.float32),
        "tokens": rng.integers(0, CONFIG.llama.vocab_size, (8, 12)).astype(np.int32),
        "embeddings": rng.normal(size=(8, 12, CONFIG.llama.hidden_size)).astype(np.float32),
        "segments": np.repeat([[1] * 7 + [2] * 3 + [0] * 2], 8, axis=0).astype(np.int32),
    }


def whisper_and_beats(model, inputs):
    encoded = model.run_encoders(inputs["pcm"], inputs["length"])
    return encoded.whisper, jnp.where(encoded.beats_mask[..., None], encoded.beats, 0)


def llama_layers(model, inputs):
    positions = jnp.broadcast_to(jnp.arange(12), (8, 12))
    return model.llama(inputs["embeddings"], positions, causal_mask(inputs["segments"]), lora_scale=2.0)[0]


# Each module is a program of its own. In one program, XLA on CPU may run the collectives of independent modules in any
# order, which deadlocks on few cores.
MODULES = {
    "whisper": lambda model, inputs: whisper_and_beats(model, inputs)[0],
    "beats": lambda model, inputs: whisper_and_beats(model, inputs)[1],
    "qformer": lambda model, inputs: model.qformer(model.query_tokens[...], inputs["frames"]),
    "projection": lambda model, inputs: model.projection(inputs["qformer_output"]),
    "llama embedding": lambda model, inputs: model.llama.embed(inputs["tokens"]),
    "llama layers": llama_layers,
    "llama logits": lambda model, inputs: model.llama.logits(inputs["embeddings"]),
}


def run_module(name, params, inputs, **options):
    compiled = jax.jit(lambda params, inputs: MODULES[name](STRUCTURE.merge(params), inputs), **options)
    return jax.device_get(compiled(params, inputs))


@pytest.fixture(scope="module")
def single_device_outputs(params, inputs):
    """Returns the outputs of every module on one device."""
    return {name: run_module(name, params, inputs) for name in MODULES}


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_outputs_on_a_mesh_equal_those_on_one_device(params, inputs, single_device_outputs, sizes):
    mesh = sharding.make_mesh(sizes)
    placement = sharding.Placement(mesh)
    placed = {path: jax.device_put(x, placement(path, x).sharding) for path, x in params.items()}
    split_params = [x for x in placed.values() if not x.sharding.is_fully_replicated]
    assert bool(split_params) == (sizes != {"data": 8})  # with data alone, all weights are replicated
    sharded_inputs, replicated = jax.device_put(inputs, sharding.row_sharding(mesh)), sharding.replicated(mesh)
    for name, expected in single_device_outputs.items():
        scale = np.abs(expected).max()
        assert scale > 0, name
        actual = run_module(name, placed, sharded_inputs, out_shardings=replicated)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale, err_msg=name)
