"""Tests of configurations: conversion to and from JSON, overrides from the command line, error messages."""

from __future__ import annotations

import ast
import importlib.util
import json
import pathlib
import pkgutil
import re
import subprocess
import sys
import typing

import pytest

import data_pipelines
import salmonn_jax
from launch import cli, train
from launch.presets import require_model, resolve_preset
from salmonn_jax import config as configuration
from salmonn_jax.config import AdamW, Lion, ModelConfig, Recipe, WarmupConstant, WarmupCosine, apply_overrides
from salmonn_jax.configs import PRESETS, get_preset
from salmonn_jax.errors import UserError
from salmonn_jax.models.common import REMAT_POLICIES
from salmonn_jax.sharding import MESH_AXES

DEBUG = get_preset("debug")
# Every optional part is present, so that all fields have a value.
FULL = {
    "recipe": apply_overrides(DEBUG.recipe, ["optimizer.clip_norm=1"]),
    "model": apply_overrides(
        DEBUG.model,
        [
            'llama.rope_scaling={"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, '
            '"original_max_position_embeddings": 16}',
            "llama.head_dim=8",
        ],
    ),
}
FIELDS = [("recipe", path) for path in configuration.field_paths(Recipe)]
FIELDS += [("model", path) for path in configuration.field_paths(ModelConfig)]
LEAVES = [(part, path) for part, config in FULL.items() for path, *_ in configuration.describe_fields(config)]
NULLABLE = {"whisper", "beats", "qformer", "llama", "llama.head_dim", "llama.rope_scaling", "optimizer.clip_norm"}


def value_of(config, path: str):
    """Returns the JSON value of a field, by its dotted path."""
    value = configuration.to_dict(config)
    for name in path.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    for config in (PRESETS[name].recipe, PRESETS[name].model):
        if config is not None:
            values = json.loads(json.dumps(configuration.to_dict(config)))
            assert configuration.from_dict(type(config), values) == config


def test_the_released_models_have_88_audio_tokens():
    assert get_preset("salmonn_13b_stage1").model.num_audio_tokens == 88
    assert get_preset("salmonn_7b_stage1").model.num_windows == 88


def test_num_valid_audio_tokens_of_window_and_clip():
    """Compares token counts by hand: a token covers 17 frames (0.34 s), and clips are padded to at least a second."""
    model = get_preset("salmonn_13b_stage1").model
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
        get_preset("salmon_7b_stage2")


def test_overrides_of_nested_fields():
    recipe = resolve_preset(
        "debug", ["lr_schedule.peak_lr=1", "data.mixture.tones=2.5", 'trainable=["a", "b"]', "data.data_dir=2026"]
    ).recipe
    assert recipe.lr_schedule.peak_lr == 1.0
    assert isinstance(recipe.lr_schedule.peak_lr, float)
    assert recipe.data.mixture == {"tones": 2.5, "words": 1.0}
    assert recipe.trainable == ("a", "b")
    assert recipe.data.data_dir == "2026"
    assert resolve_preset("debug", ["model.lora.rank=2"]).model.lora.rank == 2


def test_overrides_are_validated_together():
    """Neither 48 streams with 16 rows nor 48 rows with 8 clips of 48 streams would be valid alone."""
    overrides = ["data.streams=48", "data.rows=48", "data.clips=48"]
    assert resolve_preset("debug", overrides).recipe.data.streams == 48


def test_another_optimizer_and_schedule():
    """The other fields of the section get their defaults, and its overrides apply in any order."""
    recipe = resolve_preset("mini_stage1", ["optimizer.weight_decay=0.1", "optimizer.name=lion"]).recipe
    assert recipe.optimizer == Lion(weight_decay=0.1)
    recipe = resolve_preset("mini_stage1", ["lr_schedule.name=warmup_constant", "lr_schedule.peak_lr=1e-4"]).recipe
    assert recipe.lr_schedule == WarmupConstant(peak_lr=1e-4)
    recipe = resolve_preset("mini_stage1", ["optimizer.name=adamw", "lr_schedule.name=warmup_cosine"]).recipe
    assert recipe == get_preset("mini_stage1").recipe
    assert (type(recipe.optimizer), type(recipe.lr_schedule)) == (AdamW, WarmupCosine)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.bb1=1", "unknown configuration field 'optimizer.bb1'; did you mean 'optimizer.b1'?"),
        ("optimzer.b1=1", "unknown configuration field 'optimzer.b1'; did you mean 'optimizer.b1'?"),
        ("optimizer.name=adam", "optimizer.name=\"adam\": must be one of 'adamw', 'lion'"),
        ("optimizer.name=[1]", 'optimizer.name="[1]": must be one of'),
        ("optimizer.name=lion; optimizer.eps=1", "unknown configuration field 'optimizer.eps'"),
        ("lr_schedule=null", "lr_schedule=null: "),
        ("lr_schedule={}", "lr_schedule.name: is required"),
        ("num_train_steps=1.5", "num_train_steps=1.5: must be a valid integer"),
        ("num_train_steps=true", "num_train_steps=true: must be a valid integer"),
        ("num_train_steps=-3", "num_train_steps=-3: must be greater than 0"),
        ("num_train_steps=10000000000", "num_train_steps=10000000000: must be less than 2147483648"),
        ("num_train_steps.more=1", "num_train_steps.more=1: num_train_steps is 6 and has no fields"),
        ("activation_dtype=float16", "activation_dtype=\"float16\": must be 'float32' or 'bfloat16'"),
        ("model.llama.hidden_size=wide", 'model.llama.hidden_size="wide": must be a valid integer'),
        ("model.llama.hidden_size=30", "model.llama.hidden_size=30: must be a multiple of num_attention_heads=4"),
        (
            "model.llama.hiden_size=30",
            "unknown configuration field 'model.llama.hiden_size'; did you mean 'model",
        ),
        (
            "model.llama.hidden_size.a=30",
            "model.llama.hidden_size.a=30: model.llama.hidden_size is 32 and has no fields",
        ),
        ("model.llama", "'model.llama' is not a configuration override; write field=value"),
        ("model.llama=null", "model.qformer needs an encoder (whisper or beats) and llama"),
        ("model.audio.window_seconds=0.1", "model.audio.window_seconds=0.1 is shorter than a window of the Q-Former"),
        ("model.prompt_template=Answer:", "model.prompt_template='Answer:': must contain {}"),
        ("model.prompt_template={} {}", "must contain {}, the place of the prompt, exactly once"),
        ("model.stop_token_ids=[2,64]", "model.stop_token_ids=[2, 64]: must be below llama.vocab_size=64"),
        ("model.stop_token_ids=[-1]", "model.stop_token_ids.0=-1: must be greater than or equal to 0"),
        ("model.audio.window_seconds=1.01", "model.audio.window_seconds=1.01: must be a multiple of 0.02"),
        ("model.audio.window_seconds=0.8", "model.audio.window_seconds=0.8: must be at least audio.minimum_seconds=1"),
        ("model=3", "unknown configuration field 'model'"),
        ("remat_policy=ful", "remat_policy=\"ful\": must be 'none', 'dots' or 'full'"),
        ("data.packing=pak", "data.packing=\"pak\": must be 'pack' or 'pad'"),
        ("data.temperature=0", "data.temperature=0: must be greater than 0"),
        ("data.streams=0", "data.streams=0: must be greater than 0"),
        ("data.mixture.tones=abc", 'data.mixture.tones="abc": must be a valid number'),
        ("data.mixture.tones=0", "data.mixture.tones=0: must be greater than 0"),
        ("data.rows=12", "data.rows=12: must be a multiple of streams=8"),
        ("trainable=[1]", "trainable.0=1: must be a valid string"),
        ("lr_schedule.peak_lr=-1", "lr_schedule.peak_lr=-1: must be greater than 0"),
        ("lr_schedule.peak_lr=NaN", "lr_schedule.peak_lr=NaN: must be a finite number"),
        ("mesh.tensr=2", "mesh.tensr=\"tensr\": must be 'data', 'fsdp' or 'tensor'"),
        (
            'model.llama.rope_scaling={"factor":8,"low_freq_factor":4,"high_freq_factor":4,'
            '"original_max_position_embeddings":16}',
            "model.llama.rope_scaling.high_freq_factor=4: must be greater than low_freq_factor=4",
        ),
        (
            'model.lora.target_modules=["q_proj","q_proj"]',
            "model.lora.target_modules=['q_proj', 'q_proj']: names a projection twice; name it once",
        ),
        ("ctc_weight=0.5", "ctc_weight=0.5: the CTC loss needs transcripts; set data.max_transcript_tokens"),
        ('model.llama.rope_scaling={"factor":8}', "model.llama.rope_scaling.low_freq_factor: is required"),
        ('data.data_dir="\\ud800"', "a configuration value is not Unicode text"),
        ('data.mixture={"\\ud800":1}', "a configuration value is not Unicode text"),
        ("num_train_steps", "'num_train_steps' is not a configuration override; write field=value"),
        ("=3", "unknown configuration field ''; it must be one of: activation_dtype, "),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_field(override, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        resolve_preset("debug", override.split("; "))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_model_of_a_recipe_is_that_of_its_directory(debug_run):
    preset = resolve_preset("stage1", ["model.lora.dropout=0.3"], debug_run)
    assert preset.model == apply_overrides(DEBUG.model, ["lora.dropout=0.3"])
    assert resolve_preset("mini_stage2", [], debug_run).model == DEBUG.model


def test_a_recipe_names_no_model():
    assert require_model(DEBUG) is DEBUG
    with pytest.raises(UserError, match="stage1 is a recipe for any model; give one with --model MODEL"):
        require_model(resolve_preset("stage1", []))
    with pytest.raises(UserError, match=r"model\.lora\.rank=2: stage1 names no model"):
        resolve_preset("stage1", ["model.lora.rank=2"])


def test_what_the_weights_depend_on_is_fixed_by_the_model(debug_run):
    with pytest.raises(UserError, match=r"model\.lora\.rank=2: is fixed by the model in .*; only model\.qformer"):
        resolve_preset("debug", ["model.lora.rank=2"], debug_run)


def test_only_launch_and_training_take_the_recipe():
    """Everything else takes the parts that it needs, so that its signature says what it depends on."""
    found = []
    for module in [
        *pkgutil.walk_packages(salmonn_jax.__path__, "salmonn_jax."),
        *pkgutil.walk_packages(data_pipelines.__path__, "data_pipelines."),
    ]:
        if module.name.startswith(("salmonn_jax.config", "salmonn_jax.training.")):
            continue
        tree = ast.parse(pathlib.Path(importlib.util.find_spec(module.name).origin).read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found += [module.name] if names & {"Recipe", "Preset"} else []
    assert found == []


# Fields that hold any text.
TEXTS = {
    "data.corpus",
    "data.data_dir",
    "data.encoder_cache",
    "data.eval_split",
    "data.noise_source",
    "data.prompt_templates",
}
WRONG_VALUES = ("null", "[[]]", '{"a": [1]}', "true", '"no such choice"', "-1", "1e999", "NaN", "0.5.5")


@pytest.mark.parametrize(("part", "path"), [(part, path) for part, path in FIELDS if path not in TEXTS])
def test_values_of_a_wrong_type_or_range_are_refused(part, path):
    """Every field refuses every value of another type, sign or choice, with one line that names the field."""
    for text in WRONG_VALUES:
        if (text == "null" and path in NULLABLE) or (text == "true" and isinstance(value_of(FULL[part], path), bool)):
            continue
        with pytest.raises(UserError) as caught:
            apply_overrides(FULL[part], [f"{path}={text}"])
        assert "\n" not in str(caught.value)
        assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize(("part", "path"), FIELDS)
def test_unknown_fields_are_refused(part, path):
    """A letter is missing in the middle of the last name, or the field has a subfield that does not exist."""
    head, _, name = path.rpartition(".")
    wrong = f"{head}.{name[:1]}{name[2:]}".lstrip(".")
    with pytest.raises(UserError, match="unknown configuration field"):
        apply_overrides(FULL[part], [f"{wrong}=1"])
    if not isinstance(value_of(FULL[part], path), dict):
        with pytest.raises(UserError, match="has no fields"):
            apply_overrides(FULL[part], [f"{path}.more=1"])


@pytest.mark.parametrize(("part", "path"), LEAVES)
def test_every_field_has_a_description_and_accepts_its_own_value(part, path):
    descriptions = {name: description for name, _, description in configuration.describe_fields(FULL[part])}
    assert descriptions[path]
    assert apply_overrides(FULL[part], [f"{path}={json.dumps(value_of(FULL[part], path))}"]) == FULL[part]


def test_print_config_lists_every_field_and_reads_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["launch.train", "debug", "--print-config", "num_train_steps=7"])
    cli.run(train.main)
    lines = capsys.readouterr().out.splitlines()
    assert "num_train_steps = 7" in next(line for line in lines if "training steps" in line)
    absent = {"model.llama.rope_scaling." + name for name in ("factor", "low_freq_factor", "high_freq_factor")}
    printed = {line.split(" = ")[0] for line in lines}
    expected = {("model." if part == "model" else "") + path for part, path in LEAVES}
    assert expected - printed <= absent | {"model.llama.rope_scaling.original_max_position_embeddings"}
    assert not list(tmp_path.iterdir())


def test_choices_are_those_of_the_code_that_reads_them():
    fields = typing.get_type_hints(Recipe)
    assert set(typing.get_args(fields["remat_policy"])) == set(REMAT_POLICIES)
    assert typing.get_args(typing.get_args(fields["mesh"])[0]) == MESH_AXES


def test_first_difference_names_the_field():
    old = configuration.to_dict(DEBUG.model)
    new = configuration.to_dict(apply_overrides(DEBUG.model, ["llama.intermediate_size=65"]))
    assert configuration.first_difference(old, new) == "llama.intermediate_size is 64, not 65"
    assert configuration.first_difference(old, old) is None


@pytest.mark.parametrize(
    ("first", "imports_jax"),
    [("salmonn_jax.config", False), ("salmonn_jax.models.beats.config", False), ("salmonn_jax.models.encoder", True)],
)
def test_configurations_of_encoders_are_imported_in_any_order_and_without_jax(first, imports_jax):
    code = f"import sys, {first}, salmonn_jax.config as c; print(*c.ModelConfig().encoders, 'jax' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert output == f"whisper beats {imports_jax}\n"
