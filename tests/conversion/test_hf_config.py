"""Tests of reading `config.json`: published ones, those of transformers' classes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from salmonn_jax import config
from salmonn_jax.config import LlamaConfig, RopeScaling
from salmonn_jax.conversion.formats import hf_config
from salmonn_jax.errors import UserError
from salmonn_jax.models.llama import rotary_inv_freq
from tests import torch_checkpoints

PATH = pathlib.Path("llm")
PUBLISHED = json.loads((pathlib.Path(__file__).parent / "published_configs.json").read_text())
LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
}
MISTRAL = LLAMA | {"model_type": "mistral", "num_key_value_heads": 2}
QWEN2 = MISTRAL | {"model_type": "qwen2"}
QWEN3 = MISTRAL | {"model_type": "qwen3", "head_dim": 16}
WHISPER = PUBLISHED["whisper-small"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)


def read(values: dict, **changes) -> LlamaConfig:
    return hf_config.read_language_model(PATH, values | changes)


def test_a_llama():
    expected = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=96,
        rms_norm_eps=1e-5,
        max_position_embeddings=256,
    )
    assert read(LLAMA) == expected


@pytest.mark.parametrize(
    ("values", "changes", "expected"),
    [
        (LLAMA, {"num_key_value_heads": 2, "tie_word_embeddings": True}, {}),
        (LLAMA, {"head_dim": 32}, {}),
        (LLAMA, {"rope_theta": 500000.0}, {}),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        (LLAMA, {"rope_theta": 1e3, "rope_parameters": {"rope_theta": 1e3, "type": "default"}}, {"rope_theta": 1e3}),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE}, {"rope_scaling": SCALING}),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE | {"type": "llama3"}}, {"rope_scaling": SCALING}),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE | {"rope_theta": 1e3}}, {"rope_scaling": SCALING, "rope_theta": 1e3}),
        (LLAMA, {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 1e3}}, {"rope_scaling": SCALING, "rope_theta": 1e3}),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE, "rope_parameters": LLAMA3_ROPE}, {"rope_scaling": SCALING}),
        (QWEN2, {"rope_scaling": LLAMA3_ROPE}, {"rope_scaling": SCALING}),
        (LLAMA, {"rope_scaling": None, "partial_rotary_factor": 1.0, "attention_dropout": 0}, {}),
        (LLAMA, {"attention_bias": True, "mlp_bias": True}, {"attention_bias": "qkvo", "mlp_bias": True}),
        (LLAMA, {"layer_types": ["full_attention"] * 2, "sliding_window": None}, {}),
        (MISTRAL, {"sliding_window": 100}, {"max_position_embeddings": 100}),
        (MISTRAL, {"sliding_window": 300}, {}),
        (MISTRAL, {"sliding_window": None}, {}),
        (MISTRAL, {"num_key_value_heads": 1, "attention_bias": False}, {"num_key_value_heads": 1}),
        (QWEN3, {"attention_bias": True}, {"attention_bias": "qkvo"}),
        (QWEN3, {"head_dim": 32}, {"head_dim": 32}),
        # The window is not used if `use_sliding_window` is false or no layer slides.
        (QWEN2, {"sliding_window": 100}, {}),
        (QWEN2, {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 2}, {}),
        (QWEN3, {"sliding_window": 100, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, {}),
        (
            QWEN2,
            {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1},
            {"max_position_embeddings": 100},
        ),
        (
            QWEN3,
            {"sliding_window": 100, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
            {"max_position_embeddings": 100},
        ),
    ],
)
def test_variants(values, changes, expected):
    expected = expected or {name: value for name, value in changes.items() if hasattr(LlamaConfig, name)}
    expected = {name: value for name, value in expected.items() if value is not None}
    assert read(values, **changes) == dataclasses.replace(read(values), **expected)


def test_what_a_model_type_implies():
    assert (read(LLAMA).attention_bias, read(LLAMA).qk_norm) == ("none", False)
    assert (read(MISTRAL).attention_bias, read(MISTRAL).qk_norm) == ("none", False)
    assert (read(QWEN2).attention_bias, read(QWEN2).qk_norm) == ("qkv", False)
    assert (read(QWEN3).attention_bias, read(QWEN3).qk_norm) == ("none", True)


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        *(
            (LLAMA, {"model_type": name}, rf"model_type='{name}'; supported: llama \(LLaMA 1 to 3\.2.*qwen3")
            for name in ("qwen3_moe", "qwen2_moe", "gemma2", "mixtral", "phi3", "ministral", "smollm3", "llama4_text")
        ),
        (LLAMA, {"model_type": ["llama"]}, "supported: llama"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu'; only 'silu'"),
        (LLAMA, {"attention_dropout": 0.1}, "attention_dropout=0.1; only 0.0 .* no effect outside training"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config=.* before its quantisation"),
        (LLAMA, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (LLAMA, {"rope_interleaved": True}, "rope_interleaved=True"),
        (QWEN2, {"use_mrope": True}, "use_mrope=True"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "rotates only a part of each head"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates only a part of each head"),
        (
            LLAMA,
            {"rope_theta": 1e4, "rope_scaling": LLAMA3_ROPE | {"rope_theta": 1e3}},
            "rope_theta twice, as 10000.0 and 1000.0",
        ),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE, "rope_parameters": LLAMA3_ROPE | {"factor": 2.0}}, "factor twice"),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE, "rope_parameters": {"rope_type": "default"}}, "rope_type twice"),
        *(
            (QWEN2, {"rope_scaling": {"rope_type": name, "factor": 2.0}}, f"rope scaling '{name}'; only 'default' and")
            for name in ("linear", "dynamic", "yarn", "longrope")
        ),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear'"),
        (LLAMA, {"rope_scaling": {"factor": 2.0}}, "does not know: factor"),
        (LLAMA, {"rope_scaling": LLAMA3_ROPE | {"mrope_section": [1, 2]}}, "does not know: mrope_section"),
        (LLAMA, {"rope_scaling": "llama3"}, "rope_scaling='llama3': must be an object"),
        (LLAMA, {"rope_theta": "1e6"}, "rope_theta='1e6': must be a number"),
        (LLAMA, {"max_position_embeddings": "2k"}, "max_position_embeddings='2k': must be a number"),
        (LLAMA, {"tie_word_embeddings": "false"}, "tie_word_embeddings='false': must be true or false"),
        (LLAMA, {"attention_bias": 1}, "attention_bias=1: must be true or false"),
        (LLAMA, {"hidden_size": 66}, "llm: hidden_size=66: must be a multiple of num_attention_heads=4"),
        (LLAMA, {"rms_norm_eps": "small"}, 'llm: rms_norm_eps="small": must be a valid number'),
        (LLAMA, {"max_position_embeddings": None}, "has no max_position_embeddings"),
        (LLAMA, {"sliding_window": 128}, "sliding_window=128"),
        (LLAMA, {"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention' in layer_types"),
        (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention' in layer_types"),
        (QWEN3, {"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention' in layer_types"),
        (QWEN3, {"layer_types": 2}, "2 in layer_types"),
        (MISTRAL, {"attention_bias": True}, "attention_bias=True"),
        (QWEN3, {"mlp_bias": True}, "mlp_bias=True"),
        (MISTRAL, {"num_key_value_heads": None}, "has no num_key_value_heads"),
        (QWEN3, {"head_dim": None}, "has no head_dim"),
        (LLAMA, {"final_logit_softcapping": 30.0, "use_cache": True}, "does not know: final_logit_softcapping; remove"),
        (LLAMA, {"auto_map": {"AutoModel": "x.Y"}, "logit_scale": 2.0}, "does not know: auto_map, logit_scale;"),
    ],
)
def test_what_is_refused(values, changes, message):
    with pytest.raises(UserError, match=message) as error:
        read(values, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in LLAMA if name != "model_type"])
def test_a_missing_key_is_named(name):
    with pytest.raises(UserError, match=f"the configuration in llm has no {name}"):
        read({key: value for key, value in LLAMA.items() if key != name})


@pytest.mark.parametrize("name", [name for name, values in PUBLISHED.items() if values["model_type"] != "whisper"])
def test_published_language_models(name):
    """Reads the `config.json` of a published model as it is, and what is written back."""
    values = PUBLISHED[name]
    found = read(values)
    context = {"llama-7b": 2048, "mistral-7b-instruct-v0.1": 4096}.get(name) or values["max_position_embeddings"]
    assert found.max_position_embeddings == context
    assert found.rope_theta == (values | values.get("rope_parameters", {})).get("rope_theta", 10_000)
    assert (found.rope_scaling is not None) == name.startswith("llama-3.")
    assert found.tie_word_embeddings == values.get("tie_word_embeddings", False)
    written = hf_config.language_model_json(found)
    assert written["model_type"] == values["model_type"].replace("mistral", "llama")
    assert read(written) == dataclasses.replace(found, head_dim=found.head_size)


@pytest.mark.parametrize("name", [name for name, values in PUBLISHED.items() if values["model_type"] == "whisper"])
def test_published_whispers(name):
    values = PUBLISHED[name]
    whisper_config, window_seconds = hf_config.read_whisper(PATH, values)
    assert window_seconds == 30
    for field, value in config.to_dict(whisper_config).items():
        assert value == values[field]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "wav2vec2"}, r"model_type='wav2vec2'; supported: whisper \(any size\)"),
        ({"activation_function": "relu"}, "activation_function='relu'; only 'gelu'"),
        ({"scale_embedding": True}, "scale_embedding=True"),
        ({"d_model": None}, "has no d_model"),
        ({"max_source_positions": "1500"}, "max_source_positions='1500': must be a number"),
        ({"encoder_pre_norm": False}, "does not know: encoder_pre_norm"),
    ],
)
def test_what_is_refused_of_a_whisper(changes, message):
    with pytest.raises(UserError, match=message):
        hf_config.read_whisper(PATH, WHISPER | changes)


def test_every_default_of_the_installed_transformers_is_known():
    torch_checkpoints.require_packages()
    import transformers

    for config_class in ("LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"):
        defaults = getattr(transformers, config_class)()
        found = read(json.loads(defaults.to_json_string(use_diff=False)))
        assert found.intermediate_size == defaults.intermediate_size
    values = json.loads(transformers.WhisperConfig().to_json_string(use_diff=False))
    assert hf_config.read_whisper(PATH, values)[0].d_model == values["d_model"]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": "qkv", "mlp_bias": True},
        {"qk_norm": True, "attention_bias": "qkv"},
        {"qk_norm": True, "mlp_bias": True},
    ],
)
def test_a_model_that_transformers_does_not_have_is_not_written(changes):
    with pytest.raises(UserError, match="transformers has no model with attention_bias="):
        hf_config.language_model_json(dataclasses.replace(LlamaConfig(), **changes))


def test_llama3_rope_scaling():
    """Keeps high frequencies, divides low ones by the factor, and interpolates monotonically in between."""
    plain, scaled = rotary_inv_freq(read(LLAMA)), rotary_inv_freq(read(LLAMA, rope_scaling=LLAMA3_ROPE))
    turns = 128 * plain / (2 * np.pi)  # full rotations within the original context length
    assert (turns > 4).any() and (turns < 1).any()
    np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    assert (np.diff(scaled) < 0).all()


def test_a_configuration_survives_json():
    llama_config = read(QWEN3, rope_scaling=LLAMA3_ROPE, attention_bias=True)
    assert config.from_dict(LlamaConfig, json.loads(json.dumps(config.to_dict(llama_config)))) == llama_config
