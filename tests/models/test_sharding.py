"""Every module gives on eight devices what it gives on one, wherever the rules lay its weights. float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from salmonn_jax import sharding
from salmonn_jax.configs import get_config
from salmonn_jax.models import parameters
from salmonn_jax.models.llama import causal_mask

CONFIG = get_config("debug").model
STRUCTURE = parameters.structure(CONFIG)
MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "tensor": 4},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


@pytest.fixture(scope="module")
def params():
    """Random weights, also where they start from zeros or ones: each must lie right to give the right sum."""
    random = np.random.default_rng(0)
    initial = parameters.initialize(CONFIG, 0)
    return {path: x + jnp.asarray(0.1 * random.normal(size=x.shape), x.dtype) for path, x in initial.items()}


@pytest.fixture(scope="module")
def inputs():
    """What each module takes, its own: so an error of one is not hidden by, or charged to, the one before."""
    random = np.random.default_rng(1)
    samples, frames = CONFIG.audio.window_samples, CONFIG.audio.whisper_frames
    lengths = np.linspace(samples // 2, samples, 8).astype(np.int32)
    pcm = (3000 * random.normal(size=(8, samples))).astype(np.int16) * (np.arange(samples) < lengths[:, None])
    memory = CONFIG.whisper.width + CONFIG.beats.width
    return {
        "pcm": pcm.astype(np.int16),
        "length": lengths,
        "frames": random.normal(size=(8, frames, memory)).astype(np.float32),
        "queried": random.normal(size=(8, CONFIG.audio_tokens, CONFIG.qformer.width)).astype(np.float32),
        "tokens": random.integers(0, CONFIG.llama.vocabulary, (8, 12)).astype(np.int32),
        "embedded": random.normal(size=(8, 12, CONFIG.llama.width)).astype(np.float32),
        "segments": np.repeat([[1] * 7 + [2] * 3 + [0] * 2], 8, axis=0).astype(np.int32),
    }


def run_modules(params, inputs):
    """The output of every module, by name."""
    model = STRUCTURE.merge(params)
    encoded = model.encode_frames(inputs["pcm"], inputs["length"])
    positions = jnp.broadcast_to(jnp.arange(12), (8, 12))
    hidden, _ = model.llama(inputs["embedded"], positions, causal_mask(inputs["segments"]), lora_scale=2.0)
    return {
        "whisper": encoded.speech,
        "beats": jnp.where(encoded.exists[..., None], encoded.sound, 0),
        "qformer": model.qformer(model.query_tokens[...], inputs["frames"]),
        "projection": model.projection(inputs["queried"]),
        "llama embedding": model.llama.embed(inputs["tokens"]),
        "llama layers": hidden,
        "llama logits": model.llama.logits(inputs["embedded"]),
    }


@pytest.fixture(scope="module")
def alone(params, inputs):
    return jax.device_get(jax.jit(run_modules)(params, inputs))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_module_on_a_mesh_gives_what_it_gives_alone(params, inputs, alone, sizes):
    mesh = sharding.make_mesh(sizes)
    placement = sharding.Placement(mesh)
    placed = {path: jax.device_put(x, placement(path, x).sharding) for path, x in params.items()}
    cut = [x for x in placed.values() if not x.sharding.is_fully_replicated]
    assert bool(cut) == (sizes != {"data": 8})  # the rules have laid something over the mesh, or all is everywhere
    split, everywhere = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    spread = jax.jit(run_modules, out_shardings=everywhere)(placed, jax.device_put(inputs, split))
    for name, expected in alone.items():
        scale = np.abs(expected).max()
        assert scale > 0, name
        np.testing.assert_allclose(spread[name], expected, rtol=0, atol=1e-5 * scale, err_msg=name)
