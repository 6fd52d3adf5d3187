"""Tests of the checkpoint readers: tensors are read unchanged, and bad files are refused with a one-line error."""

from __future__ import annotations

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest

from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError

torch = pytest.importorskip("torch", reason="torch opens PyTorch's files")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")


def values() -> dict:
    """Returns a state dict of four dtypes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=generator)
    return {"a": x, "b": x.to(torch.bfloat16), "c": x.to(torch.float16), "d": torch.arange(3)}


def check(state_dict: dict[str, tensors.LazyTensor]) -> None:
    """Asserts that the tensors are those of `values`, byte for byte."""
    assert set(state_dict) == set(values())
    for name, value in values().items():
        assert state_dict[name].shape == tuple(value.shape)
        read = state_dict[name].read()
        assert read.dtype == state_dict[name].dtype
        assert read.tobytes() == value.view(torch.uint8).numpy().tobytes()
    assert state_dict["b"].dtype == np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Returns a Hugging Face directory without weights."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_torch_files_of_both_formats(tmp_path):
    for zip_format in (True, False):
        path = tmp_path / f"{zip_format}.pt"
        torch.save(values(), path, _use_new_zipfile_serialization=zip_format)
        check(tensors.open_state_dict(path))


def test_safetensors(tmp_path):
    safetensors_torch.save_file(values(), tmp_path / "x.safetensors")
    check(tensors.open_state_dict(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_hf_directory_with_one_file_and_with_shards(folder, kind):
    save = safetensors_torch.save_file if kind.endswith("safetensors") else torch.save
    save(values(), folder / kind)
    check(tensors.open_hf_directory(folder)[1])
    (folder / kind).unlink()

    stem, _, suffix = kind.partition(".")
    shards = {f"{stem}-{i}.{suffix}": names for i, names in ((1, "ab"), (2, "cd"))}
    for shard, names in shards.items():
        save({name: values()[name] for name in names}, folder / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / f"{kind}.index.json").write_text(json.dumps(index))
    config, state_dict = tensors.open_hf_directory(folder)
    assert config == {"model_type": "llama"}
    check(state_dict)

    missing = folder / f"{stem}-2.{suffix}"
    missing.unlink()
    with pytest.raises(UserError, match=f"lacks 1 shard.* {missing.name}"):
        tensors.open_hf_directory(folder)


def test_file_that_would_run_code_is_refused(tmp_path):
    class RunsCode:
        def __reduce__(self):
            return print, ("code was run",)

    torch.save({"model": RunsCode()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="only files of plain tensors are opened"):
        tensors.load_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_truncated_file_is_refused(tmp_path, name):
    path = tmp_path / name
    save = safetensors_torch.save_file if name.endswith("safetensors") else torch.save
    save(values(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        tensors.open_state_dict(path)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_missing_and_unrelated_files_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="there is no file"):
        tensors.open_state_dict(tmp_path / name)
    (tmp_path / name).write_text("not tensors at all")
    with pytest.raises(UserError, match=r"truncated|not a torch file"):
        tensors.open_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_garbage_is_refused_with_one_line(tmp_path, name):
    """Tries an empty file, a failed download, and random bytes with every first byte."""
    for content in (b"", b"Repository not found", b"\x00" * 20, *(bytes([first, 46, 10]) for first in range(256))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"x\."):
            tensors.open_state_dict(tmp_path / name)


def test_nn_parameters_are_read(tmp_path):
    """Reads a file in which a trainer saved torch.nn.Parameter objects instead of tensors."""
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt")
    np.testing.assert_array_equal(tensors.open_state_dict(tmp_path / "x.pt")["a"].read(), np.ones(2, np.float32))


def test_wrong_index_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    for content in ("{}", '{"weight_map": {}}', '{"weight_map": []}'):
        index.write_text(content)
        with pytest.raises(UserError, match="no weight_map"):
            tensors.open_hf_directory(folder)
    for shard in "12":
        safetensors_torch.save_file({"a": values()["a"]}, folder / f"{shard}.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}))
    with pytest.raises(UserError) as error:
        tensors.open_hf_directory(folder)
    for message in ("a is in 2.safetensors and in another", "b is not in 2.safetensors", "c is not in 2.safetensors"):
        assert message in str(error.value)


def test_missing_torch_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs the package torch .*salmonn-jax\[convert\]"):
        tensors.load_torch(tmp_path / "x.pt")


def test_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        tensors.open_state_dict(tmp_path / "x.pt")


def test_directory_without_weights_or_config_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match="holds no weights"):
        tensors.open_hf_directory(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        tensors.open_hf_directory(folder)
    with pytest.raises(UserError, match="is not a directory"):
        tensors.open_hf_directory(tmp_path / "none")
