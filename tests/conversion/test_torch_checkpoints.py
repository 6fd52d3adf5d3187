"""Tests of opening checkpoints, of `launch.convert inspect`, and of the check of the language model."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from launch import convert
from salmonn_jax.config import LlamaConfig, RopeScaling
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.conversion import mapping, tables, tensors, torch_checkpoints, vicuna
from salmonn_jax.errors import UserError
from salmonn_jax.models.llama import rotary_inv_freq
from tests.golden import MINI

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
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)


def read(monkeypatch, **changes) -> LlamaConfig:
    """Returns the configuration that `open_llama` reads from a Hugging Face configuration with these changes."""
    monkeypatch.setattr(tensors, "open_hf_directory", lambda path: (LLAMA | changes, {}))
    return torch_checkpoints.open_llama(pathlib.Path("llm")).config


def test_open_llama(monkeypatch):
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
    assert read(monkeypatch) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"num_key_value_heads": 2, "tie_word_embeddings": True},
            {"num_key_value_heads": 2, "tie_word_embeddings": True},
        ),
        ({"head_dim": 32}, {"head_dim": 32}),
        ({"rope_theta": 500000.0}, {"rope_theta": 500000.0}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        ({"rope_scaling": LLAMA3_ROPE}, {"rope_scaling": SCALING}),
        ({"rope_scaling": LLAMA3_ROPE | {"rope_theta": 1e3}}, {"rope_scaling": SCALING, "rope_theta": 1e3}),
        ({"rope_parameters": LLAMA3_ROPE | {"rope_theta": 1e3}}, {"rope_scaling": SCALING, "rope_theta": 1e3}),
        ({"rope_scaling": None}, {}),
        ({"partial_rotary_factor": 1.0}, {}),
        ({"model_type": "mistral", "sliding_window": 100}, {"max_position_embeddings": 100}),
        ({"model_type": "mistral", "sliding_window": None}, {}),
    ],
)
def test_open_llama_variants(monkeypatch, changes, expected):
    assert read(monkeypatch, **changes) == dataclasses.replace(read(monkeypatch), **expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "qwen2"}, "model_type='qwen2'; expected llama or mistral"),
        ({"attention_bias": True}, "has biases"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"partial_rotary_factor": 0.5}, "rotates only a part of each head"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rotates only a part of each head",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": LLAMA3_ROPE | {"rope_theta": 1e3}},
            "rope_theta twice, as 1000.0 and 10000.0",
        ),
        ({"hidden_size": 66}, "llm: hidden_size=66: must be a multiple of num_attention_heads=4"),
        ({"rms_norm_eps": "small"}, 'llm: rms_norm_eps="small": must be a valid number'),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear'"),
    ],
)
def test_unsupported_llama_is_refused(monkeypatch, changes, says):
    with pytest.raises(UserError, match=says):
        read(monkeypatch, **changes)


def test_missing_field_is_named(monkeypatch):
    monkeypatch.setattr(tensors, "open_hf_directory", lambda path: ({"model_type": "llama"}, {}))
    with pytest.raises(UserError, match="has no num_attention_heads"):
        torch_checkpoints.open_llama(pathlib.Path("llm"))


def test_llama3_rope_scaling(monkeypatch):
    """Keeps high frequencies, divides low ones by the factor, and interpolates monotonically in between."""
    plain, scaled = rotary_inv_freq(read(monkeypatch)), rotary_inv_freq(read(monkeypatch, rope_scaling=LLAMA3_ROPE))
    turns = 128 * plain / (2 * np.pi)  # full rotations within the original context length
    assert (turns > 4).any() and (turns < 1).any()
    np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    assert (np.diff(scaled) < 0).all()


@pytest.mark.parametrize("changed", ["rms_norm_eps", "max_position_embeddings", "vocab_size", "num_hidden_layers"])
@pytest.mark.parametrize(("width", "model"), [(5120, MODEL_13B), (4096, MODEL_7B)])
def test_mismatched_vicuna_is_refused(width, model, changed):
    file, llm = pathlib.Path("x.pth"), pathlib.Path("vicuna")
    vicuna.check_llm(width, file, model.llama, llm, own_checkpoint=False)
    other = dataclasses.replace(model.llama, **{changed: getattr(model.llama, changed) * 2})
    with pytest.raises(UserError, match=r"vicuna is not Vicuna-.* is .* answers are empty"):
        vicuna.check_llm(width, file, other, llm, own_checkpoint=False)
    vicuna.check_llm(width, file, other, llm, own_checkpoint=True)
    with pytest.raises(UserError, match=rf"needs a language model with hidden_size={width} .* has hidden_size=1024"):
        vicuna.check_llm(
            width, file, dataclasses.replace(other, hidden_size=1024, head_dim=32), llm, own_checkpoint=True
        )


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("salmonn.pth", ["SALMONN checkpoint, 78 tensors", "other entry: epoch 0", "): an index buffer"]),
        ("beats.pt", ["BEATs checkpoint, 52 tensors", "'num_buckets': 320", "): the classification head"]),
        ("whisper", ["Whisper checkpoint", "): the decoder"]),
        ("vicuna", ["LLaMA checkpoint", "model.embed_tokens.weight [400, 48] float16"]),
    ],
)
def test_inspect(name, lines, capsys):
    MINI.require()
    convert.main(["inspect", str(MINI.directory / name)])
    output = capsys.readouterr().out
    for line in lines:
        assert line in output


def test_ignored_tensors_are_grouped_by_reason():
    reasons = {"decoder.a": "the decoder", "decoder.b": "the decoder", "decoder.c": "the decoder", "epoch": "state"}
    assert mapping.summarize_ignored(reasons) == [
        "ignored 3 keys (decoder.a, decoder.b, ...): the decoder",
        "ignored 1 key (epoch): state",
    ]


def test_verbose_inspect_lists_each_ignored_tensor(capsys):
    MINI.require()
    path = MINI.directory / "whisper"
    convert.main(["inspect", str(path)])
    grouped = capsys.readouterr().out.splitlines()
    convert.main(["inspect", str(path), "--verbose"])
    listed = capsys.readouterr().out.splitlines()
    num_ignored = sum("  ignored: the decoder" in line for line in listed)
    assert num_ignored > 2 and not any("  ignored: " in line for line in grouped)
    assert len(grouped) == len(listed) - num_ignored + 1
    assert grouped[-1].startswith(f"  ignored {num_ignored} keys (") and grouped[-1].endswith(
        "only the encoder is used"
    )


def test_conversion_prints_one_line_per_reason(tmp_path, capsys):
    MINI.require()
    words = ["to-jax", "whisper", "--whisper", str(MINI.directory / "whisper"), "--output"]
    convert.main([*words, str(tmp_path / "grouped")])
    (grouped,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ignored ")]
    convert.main([*words, str(tmp_path / "listed"), "--verbose"])
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ignored ")]
    assert grouped.startswith(f"ignored {len(listed)} keys (") and len(listed) > 2


def lazy(values: np.ndarray) -> tensors.LazyTensor:
    return tensors.LazyTensor(values.shape, values.dtype, lambda: values)


def test_a_tensor_that_is_ignored_as_a_copy_must_be_one():
    embedding = np.arange(12, dtype=np.float32).reshape(4, 3)
    files = {"model.embed_tokens.weight": lazy(embedding), "lm_head.weight": lazy(embedding.copy())}
    tied = tables.llama(tie_word_embeddings=True)
    mapping.check_copies(tied, files)
    assert mapping.ignored_tensors(tied, files) == {
        "lm_head.weight": "a copy of model.embed_tokens.weight, as a conversion checks"
    }
    changed = files | {"lm_head.weight": lazy(embedding + 1)}
    with pytest.raises(UserError, match=r"lm_head\.weight has other values .* set tie_word_embeddings to false"):
        mapping.check_copies(tied, changed)
    mapping.check_copies(tables.llama(tie_word_embeddings=False), changed)
    bias = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    with pytest.raises(UserError, match=r"layers\.2\..* has other values than encoder\.layers\.0"):
        mapping.check_copies(
            tables.beats(16),
            {bias.format(0): lazy(embedding), bias.format(1): lazy(embedding), bias.format(2): lazy(-embedding)},
        )


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin", "tokenizer.model"])
def test_a_git_lfs_pointer_is_named_and_nothing_is_written(tmp_path, name):
    MINI.require()
    llm = shutil.copytree(MINI.directory / "vicuna", tmp_path / "llm")
    (llm / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=rf"{name} is a git-lfs pointer, not the file; run `git lfs pull`"):
        convert.main(["to-jax", "llama", "--llm", str(llm), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_language_model_without_tokenizer_is_refused(tmp_path):
    MINI.require()
    llm = shutil.copytree(MINI.directory / "vicuna", tmp_path / "llm")
    (llm / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.model and no tokenizer\.json in .*llm"):
        convert.main(["to-jax", "llama", "--llm", str(llm), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_unsupported_beats_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="torch opens PyTorch's files")
    path = tmp_path / "beats.pt"
    # A missing deep_norm has the original's default, False, which is not supported either.
    for cfg in ({"deep_norm": False}, {}):
        torch.save({"cfg": cfg, "model": {}}, path)
        with pytest.raises(UserError, match="has deep_norm=False; only BEATs with deep_norm=True"):
            torch_checkpoints.open_beats(path)
    torch.save({"cfg": None, "model": {}}, path)
    with pytest.raises(UserError, match="its `cfg` is not a dictionary"):
        torch_checkpoints.open_beats(path)
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="is not a BEATs checkpoint"):
        torch_checkpoints.open_beats(path)


def test_llama_config_survives_json(monkeypatch):
    from salmonn_jax import config

    llama_config = read(monkeypatch, rope_scaling=LLAMA3_ROPE, head_dim=16)
    assert config.from_dict(LlamaConfig, json.loads(json.dumps(config.to_dict(llama_config)))) == llama_config
