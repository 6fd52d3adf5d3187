"""Tests of opening checkpoints, of `launch.convert inspect`, and of the check of the language model."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from launch import convert
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.conversion import mapping, tables, torch_checkpoints, vicuna
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError
from tests.golden import MINI


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
        ("vicuna", ["language model, 33 tensors", "model.embed_tokens.weight [400, 48] float16"]),
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
