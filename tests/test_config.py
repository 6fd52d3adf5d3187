"""Tests of configurations: conversion to and from JSON, overrides from the command line, error messages."""

from __future__ import annotations

import json

import pytest

from salmonn_jax import config as configuration
from salmonn_jax.config import RunConfig
from salmonn_jax.configs import CONFIGS, get_config
from salmonn_jax.errors import UserError


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name):
    values = json.loads(json.dumps(configuration.to_dict(CONFIGS[name])))
    assert configuration.from_dict(RunConfig, values) == CONFIGS[name]


def test_the_released_models_have_88_audio_tokens():
    assert get_config("salmonn_13b_stage1").model.num_audio_tokens == 88
    assert get_config("salmonn_7b_stage1").model.num_windows == 88


def test_num_valid_audio_tokens_of_window_and_clip():
    """Compares token counts by hand: a token covers 17 frames (0.34 s), and clips are padded to at least a second."""
    model = get_config("salmonn_13b_stage1").model
    assert [model.num_valid_audio_tokens(samples) for samples in (1, 160_000, 480_000)] == [88, 88, 88]
    model = configuration.apply_override(model, "audio.tokens", "clip")
    assert [model.num_valid_audio_tokens(samples) for samples in (1, 16_000, 5440 * 3, 5440 * 3 + 1)] == [3, 3, 3, 4]
    assert [model.num_valid_audio_tokens(samples) for samples in (160_000, 470_000, 480_000, 960_000)] == [
        30,
        87,
        88,
        88,
    ]


def test_error_for_an_unknown_configuration_suggests_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'salmonn_7b_stage2'"):
        get_config("salmon_7b_stage2")


def test_overrides_of_nested_fields():
    config = configuration.apply_override(get_config("debug"), "optimizer.peak_lr", "1")
    config = configuration.apply_override(config, "data.mixture.tones", "2.5")
    config = configuration.apply_override(config, "trainable", '["a", "b"]')
    assert config.optimizer.peak_lr == 1.0
    assert isinstance(config.optimizer.peak_lr, float)
    assert config.data.mixture == {"tones": 2.5, "words": 1.0}
    assert config.trainable == ("a", "b")


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("optimizer.peek", "1", "did you mean 'peak_lr'"),
        ("num_train_steps", "1.5", "num_train_steps must be int"),
        ("num_train_steps", "true", "num_train_steps must be int"),
        ("num_train_steps.more", "1", "num_train_steps has no fields"),
        ("model.llama.hidden_size", "wide", "hidden_size must be int"),
    ],
)
def test_error_for_a_wrong_override_names_the_field(path, text, message):
    with pytest.raises(UserError, match=message):
        configuration.apply_override(get_config("debug"), path, text)


def test_first_difference_names_the_field():
    old = configuration.to_dict(get_config("debug"))
    new = configuration.to_dict(
        configuration.apply_override(get_config("debug"), "model.llama.intermediate_size", "65")
    )
    assert configuration.first_difference(old, new) == "model.llama.intermediate_size is 64, not 65"
    assert configuration.first_difference(old, old) is None


def test_a_literal_field_accepts_only_its_choices():
    with pytest.raises(UserError, match=r"unknown value of packing 'pak'; did you mean 'pack'"):
        configuration.apply_override(get_config("debug"), "data.packing", "pak")
    assert configuration.apply_override(get_config("debug"), "data.packing", "pack").data.packing == "pack"
