"""Checks of a library with a third encoder. `tests/models/test_third_encoder.py` runs them in a copy of the library."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax import config as configuration
from salmonn_jax import model_directory, sharding
from salmonn_jax.config import ModelConfig
from salmonn_jax.configs import get_preset
from salmonn_jax.conversion import to_torch
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.planning import accounting, hlo

WITHOUT = get_preset("debug")
OVERRIDES = ['strided={"hidden_size": 8}']
CONFIG = configuration.apply_overrides(WITHOUT.model, OVERRIDES)
STRUCTURE = parameters.model_structure(CONFIG)
NEW_PATHS = {"strided/projection/kernel", "strided/projection/bias", "ln_strided/scale", "ln_strided/bias"}
CLIPS = 8


@pytest.fixture(scope="module")
def params():
    """Returns random weights, also where they start from zeros or ones."""
    random = np.random.default_rng(0)
    initial = parameters.init_params(CONFIG, 0)
    return {path: x + jnp.asarray(0.1 * random.normal(size=x.shape), x.dtype) for path, x in initial.items()}


@pytest.fixture(scope="module")
def clips():
    samples = CONFIG.audio.window_samples
    pcm = (3000 * np.random.default_rng(1).normal(size=(CLIPS, samples))).astype(np.int16)
    return pcm, np.full(CLIPS, samples, np.int32)


def test_the_configuration_is_stored_and_overridden_like_others():
    stored = json.loads(json.dumps(configuration.to_dict(CONFIG)))
    assert configuration.from_dict(ModelConfig, stored) == CONFIG
    assert "strided.stride" in configuration.field_paths(ModelConfig)
    assert list(CONFIG.encoders) == ["whisper", "beats", "strided"]


def test_parameters_are_added_and_no_other_path_changes():
    without = parameters.model_structure(WITHOUT.model).shapes
    assert set(STRUCTURE.shapes) - set(without) == NEW_PATHS
    assert set(without) < set(STRUCTURE.shapes)
    grown = {path for path in without if without[path].shape != STRUCTURE.shapes[path].shape}
    assert grown == {f"qformer/layers/cross_attention/{name}/kernel" for name in ("key", "value")}


def test_every_parameter_matches_one_sharding_rule():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = {path: sharding.frozen_spec(path, leaf.shape, mesh) for path, leaf in STRUCTURE.shapes.items()}
    assert specs["strided/projection/kernel"] == jax.sharding.PartitionSpec("fsdp", None)


def test_it_is_trained_by_its_name():
    assert parameters.trainable_paths(STRUCTURE.shapes, ["strided"]) == {p for p in NEW_PATHS if p.startswith("st")}
    assert {p for p in NEW_PATHS if p.startswith("ln_")} < parameters.trainable_paths(STRUCTURE.shapes, ["norms"])
    every = parameters.trainable_modules(STRUCTURE.shapes, parameters.MODULES)
    assert sorted(path for paths in every.values() for path in paths) == sorted(STRUCTURE.shapes)


def test_its_frames_reach_the_audio_tokens_and_its_operations_are_counted(params, clips):
    compiled = jax.jit(lambda params, *clips: STRUCTURE.merge(params).encode_audio(*clips)).lower(params, *clips)
    compiled = compiled.compile()
    tokens = compiled(params, *clips)
    assert tokens.shape == (CLIPS, CONFIG.num_audio_tokens, CONFIG.llama.hidden_size)
    silent = params | {"ln_strided/scale": 0 * params["ln_strided/scale"]}
    assert np.abs(tokens - compiled(silent, *clips)).max() > 1e-3
    data = dataclasses.replace(WITHOUT.recipe.data, clips=CLIPS)
    flops = accounting.step_flops(CONFIG, data)
    assert flops.by_component["strided"] == 2 * CONFIG.audio.window_samples * 8 * CLIPS
    forward = flops.features + sum(flops.encoders.values()) + flops.qformer // 3
    assert hlo.dot_flops(compiled.as_text()) == pytest.approx(forward, rel=1e-3)


def test_frames_are_aligned_to_those_of_the_window():
    """The Q-Former reads 50 frames a second, of which those after the clip are zeros; it needs no other encoder."""
    pcm, length = np.full((1, 32_000), 1000, np.int16), np.int32([16_000])
    for stride, last in ((320, 49), (640, 24), (160, 99)):
        config = dataclasses.replace(
            CONFIG,
            audio=dataclasses.replace(CONFIG.audio, window_seconds=2.0),
            **{"whisper": None, "beats": None, "strided": dataclasses.replace(CONFIG.strided, stride=stride)},
        )
        model = parameters.model_structure(config).merge(parameters.init_params(config, 0))
        frames = model.concat_encoder_frames(model.run_encoders(pcm, length))
        assert frames.shape == (1, 100, 8)
        assert np.flatnonzero(np.abs(frames[0]).max(axis=1)).max() == last


def test_a_saved_model_is_loaded(tmp_path):
    alone = dataclasses.replace(CONFIG, whisper=None, beats=None, qformer=None, llama=None)
    params = parameters.init_params(alone, 0)
    assert set(params) == {path for path in NEW_PATHS if path.startswith("strided/")}
    base = model_directory.save_base(tmp_path, params)
    model_directory.write_config_and_tokenizer(tmp_path, alone, base, None)
    loaded = model_directory.load_model(tmp_path)
    assert loaded.config == alone
    for path, value in params.items():
        np.testing.assert_array_equal(loaded.params[path], value)


def test_the_format_of_the_original_has_no_place_for_it(params, tmp_path):
    base = model_directory.save_base(tmp_path, params)
    model_directory.write_config_and_tokenizer(tmp_path, CONFIG, base, None)
    with pytest.raises(UserError, match="has the encoders whisper, beats, strided: the original"):
        to_torch.write_salmonn_checkpoint(tmp_path, tmp_path / "salmonn.pth")
    assert not (tmp_path / "salmonn.pth").exists()


def test_a_mesh_gives_what_one_device_gives(params, clips):
    def encode(params, *clips):
        return STRUCTURE.merge(params).run_encoders(*clips)["strided"].frames

    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placement = sharding.Placement(mesh)
    placed = {path: jax.device_put(x, placement(path, x).sharding) for path, x in params.items()}
    assert not placed["strided/projection/kernel"].sharding.is_fully_replicated
    spread = jax.device_put(clips, sharding.row_sharding(mesh))
    ours = jax.jit(encode, out_shardings=sharding.replicated(mesh))(placed, *spread)
    np.testing.assert_allclose(ours, jax.jit(encode)(params, *clips), rtol=0, atol=1e-5)
