"""Tests of configurations: conversion to and from JSON, overrides from the command line, error messages."""

from __future__ import annotations

import json
import re
import typing

import pytest

from launch import cli, train
from salmonn_jax import config as configuration
from salmonn_jax.config import RunConfig, apply_overrides
from salmonn_jax.configs import CONFIGS, get_config
from salmonn_jax.errors import UserError
from salmonn_jax.models.common import REMAT_POLICIES
from salmonn_jax.sharding import MESH_AXES

DEBUG = get_config("debug")
FIELDS = [path for path, _ in configuration.describe_fields(RunConfig)]
LEAVES = [path for path in FIELDS if not any(other.startswith(path + ".") for other in FIELDS)]
# Every optional part is present, so that all fields have a value.
FULL = apply_overrides(
    DEBUG,
    [
        'model.llama.rope_scaling={"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, '
        '"original_max_position_embeddings": 16}',
        "model.llama.head_dim=8",
        "optimizer.clip_norm=1",
    ],
)
NULLABLE = {
    "model.whisper",
    "model.beats",
    "model.qformer",
    "model.llama",
    "model.llama.head_dim",
    "model.llama.rope_scaling",
    "optimizer.clip_norm",
}


def value_of(config, path: str):
    """Returns the JSON value of a field, by its dotted path."""
    value = configuration.to_dict(config)
    for name in path.split("."):
        value = value[name]
    return value


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
    model = apply_overrides(model, ["audio.tokens=clip"])
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
    config = apply_overrides(
        DEBUG, ["optimizer.peak_lr=1", "data.mixture.tones=2.5", 'trainable=["a", "b"]', "data.data_dir=2026"]
    )
    assert config.optimizer.peak_lr == 1.0
    assert isinstance(config.optimizer.peak_lr, float)
    assert config.data.mixture == {"tones": 2.5, "words": 1.0}
    assert config.trainable == ("a", "b")
    assert config.data.data_dir == "2026"


def test_overrides_are_validated_together():
    """Neither 48 streams with 16 rows nor 48 rows with 8 clips of 48 streams would be valid alone."""
    assert apply_overrides(DEBUG, ["data.streams=48", "data.rows=48", "data.clips=48"]).data.streams == 48


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.peek=1", "unknown configuration field 'optimizer.peek'; did you mean 'optimizer.peak_lr'?"),
        ("optimzer.peak_lr=1", "unknown configuration field 'optimzer.peak_lr'; did you mean 'optimizer.peak_lr'?"),
        ("num_train_steps=1.5", "num_train_steps=1.5: must be a valid integer"),
        ("num_train_steps=true", "num_train_steps=true: must be a valid integer"),
        ("num_train_steps=-3", "num_train_steps=-3: must be greater than 0"),
        ("num_train_steps=10000000000", "num_train_steps=10000000000: must be less than 2147483648"),
        ("num_train_steps.more=1", "num_train_steps.more=1: num_train_steps is 6 and has no fields"),
        ("model.llama.hidden_size=wide", 'model.llama.hidden_size="wide": must be a valid integer'),
        ("model.llama.hidden_size=30", "model.llama.hidden_size=30: must be a multiple of num_attention_heads=4"),
        ("model.llama=null", "model.qformer needs whisper and llama"),
        ("model.audio.window_seconds=0.1", "model.audio.window_seconds=0.1 is shorter than a window of the Q-Former"),
        ("model.prompt_template=Answer:", "model.prompt_template='Answer:': must contain {}"),
        ("model.prompt_template={} {}", "must contain {}, the place of the prompt, exactly once"),
        ("model.stop_token_ids=[2,64]", "model.stop_token_ids=[2, 64]: must be below llama.vocab_size=64"),
        ("model.stop_token_ids=[-1]", "model.stop_token_ids.0=-1: must be greater than or equal to 0"),
        ("model.audio.window_seconds=1.01", "model.audio.window_seconds=1.01: must be a multiple of 0.02"),
        ("model.audio.window_seconds=0.8", "model.audio.window_seconds=0.8: must be at least audio.minimum_seconds=1"),
        ("remat_policy=ful", "remat_policy=\"ful\": must be 'none', 'dots' or 'full'"),
        ("data.packing=pak", "data.packing=\"pak\": must be 'pack' or 'pad'"),
        ("data.temperature=0", "data.temperature=0: must be greater than 0"),
        ("data.streams=0", "data.streams=0: must be greater than 0"),
        ("data.mixture.tones=abc", 'data.mixture.tones="abc": must be a valid number'),
        ("data.mixture.tones=0", "data.mixture.tones=0: must be greater than 0"),
        ("data.rows=12", "data.rows=12: must be a multiple of streams=8"),
        ("trainable=[1]", "trainable.0=1: must be a valid string"),
        ("optimizer.peak_lr=-1", "optimizer.peak_lr=-1: must be greater than 0"),
        ("optimizer.peak_lr=NaN", "optimizer.peak_lr=NaN: must be a finite number"),
        ("mesh.tensr=2", "mesh.tensr=\"tensr\": must be 'data', 'fsdp' or 'tensor'"),
        ('model.llama.rope_scaling={"factor": 8}', "model.llama.rope_scaling.low_freq_factor: is required"),
        ('data.data_dir="\\ud800"', "a configuration value is not Unicode text"),
        ('data.mixture={"\\ud800": 1}', "a configuration value is not Unicode text"),
        ("num_train_steps", "'num_train_steps' is not a configuration override; write field=value"),
        ("=3", "unknown configuration field ''; it must be one of: ctc_blank, "),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_field(override, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        apply_overrides(DEBUG, [override])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# Fields that hold any text.
TEXTS = {"name", "data.corpus", "data.data_dir", "data.prompt_templates", "data.noise_source"}
WRONG_VALUES = ("null", "[[]]", '{"a": [1]}', "true", '"no such choice"', "-1", "1e999", "NaN", "0.5.5")


@pytest.mark.parametrize("path", [path for path in FIELDS if path not in TEXTS])
def test_values_of_a_wrong_type_or_range_are_refused(path):
    """Every field refuses every value of another type, sign or choice, with one line that names the field."""
    for text in WRONG_VALUES:
        if (text == "null" and path in NULLABLE) or (text == "true" and isinstance(value_of(FULL, path), bool)):
            continue
        with pytest.raises(UserError) as caught:
            apply_overrides(FULL, [f"{path}={text}"])
        assert "\n" not in str(caught.value)
        assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize("path", FIELDS)
def test_unknown_fields_are_refused(path):
    """A letter is missing in the middle of the last name, or the field has a subfield that does not exist."""
    head, _, name = path.rpartition(".")
    wrong = f"{head}.{name[:1]}{name[2:]}".lstrip(".")
    with pytest.raises(UserError, match="unknown configuration field"):
        apply_overrides(FULL, [f"{wrong}=1"])
    if not isinstance(value_of(FULL, path), dict):
        with pytest.raises(UserError, match="has no fields"):
            apply_overrides(FULL, [f"{path}.more=1"])


@pytest.mark.parametrize("path", LEAVES)
def test_every_field_has_a_description_and_accepts_its_own_value(path):
    assert dict(configuration.describe_fields(RunConfig))[path]
    assert apply_overrides(FULL, [f"{path}={json.dumps(value_of(FULL, path))}"]) == FULL


def test_print_config_lists_every_field_and_reads_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["launch.train", "debug", "--print-config", "num_train_steps=7"])
    cli.run(train.main)
    lines = capsys.readouterr().out.splitlines()
    assert "num_train_steps = 7" in next(line for line in lines if "training steps" in line)
    absent = {"model.llama.rope_scaling." + name for name in ("factor", "low_freq_factor", "high_freq_factor")}
    printed = {line.split(" = ")[0] for line in lines}
    assert set(LEAVES) - printed <= absent | {"model.llama.rope_scaling.original_max_position_embeddings"}
    assert not list(tmp_path.iterdir())


def test_choices_are_those_of_the_code_that_reads_them():
    fields = typing.get_type_hints(RunConfig)
    assert set(typing.get_args(fields["remat_policy"])) == set(REMAT_POLICIES)
    assert typing.get_args(typing.get_args(fields["mesh"])[0]) == MESH_AXES


def test_first_difference_names_the_field():
    old = configuration.to_dict(DEBUG)
    new = configuration.to_dict(apply_overrides(DEBUG, ["model.llama.intermediate_size=65"]))
    assert configuration.first_difference(old, new) == "model.llama.intermediate_size is 64, not 65"
    assert configuration.first_difference(old, old) is None
