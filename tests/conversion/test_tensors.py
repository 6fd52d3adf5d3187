"""Files of tensors: read as they are, and refused in one line where they cannot be trusted."""

from __future__ import annotations

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest

from salmonn_jax.conversion import tensors
from salmonn_jax.errors import UserError

torch = pytest.importorskip("torch", reason="torch opens PyTorch's files")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")


def values() -> dict:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 4, generator=generator)
    return {"a": drawn, "b": drawn.to(torch.bfloat16), "c": drawn.to(torch.float16), "d": torch.arange(3)}


def check(found: dict[str, tensors.LazyTensor]) -> None:
    assert set(found) == set(values())
    for name, value in values().items():
        assert found[name].shape == tuple(value.shape)
        read = found[name].read()
        assert read.dtype == found[name].dtype
        assert read.tobytes() == value.view(torch.uint8).numpy().tobytes()
    assert found["b"].dtype == np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_torch_files_of_both_formats(tmp_path):
    for new in (True, False):
        path = tmp_path / f"{new}.pt"
        torch.save(values(), path, _use_new_zipfile_serialization=new)
        check(tensors.open_state_dict(path))


def test_safetensors(tmp_path):
    safetensors_torch.save_file(values(), tmp_path / "x.safetensors")
    check(tensors.open_state_dict(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_directories_whole_and_in_shards(folder, kind):
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
    config, found = tensors.open_hf_directory(folder)
    assert config == {"model_type": "llama"}
    check(found)

    missing = folder / f"{stem}-2.{suffix}"
    missing.unlink()
    with pytest.raises(UserError, match=f"lacks 1 shard.* {missing.name}"):
        tensors.open_hf_directory(folder)


def test_a_file_that_wants_code_run_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm done",)

    torch.save({"model": Harm()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="only files of plain tensors are opened"):
        tensors.load_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_file_cut_short(tmp_path, name):
    path = tmp_path / name
    save = safetensors_torch.save_file if name.endswith("safetensors") else torch.save
    save(values(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        tensors.open_state_dict(path)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_file_of_another_kind_and_none(tmp_path, name):
    with pytest.raises(UserError, match="there is no file"):
        tensors.open_state_dict(tmp_path / name)
    (tmp_path / name).write_text("not tensors at all")
    with pytest.raises(UserError, match=r"cut short|not a torch file"):
        tensors.open_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_whatever_a_file_begins_with(tmp_path, name):
    """An empty file, a failed download, noise: one line each."""
    for content in (b"", b"Repository not found", b"\x00" * 20, *(bytes([first, 46, 10]) for first in range(256))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"x\."):
            tensors.open_state_dict(tmp_path / name)


def test_trained_parameters_are_read(tmp_path):
    """As a trainer saves them that writes the parameters themselves."""
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt")
    np.testing.assert_array_equal(tensors.open_state_dict(tmp_path / "x.pt")["a"].read(), np.ones(2, np.float32))


def test_an_index_that_is_wrong(folder):
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
    for told in ("a is in 2.safetensors and in another", "b is not in 2.safetensors", "c is not in 2.safetensors"):
        assert told in str(error.value)


def test_without_torch_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs the package torch .*salmonn-jax\[convert\]"):
        tensors.load_torch(tmp_path / "x.pt")


def test_a_file_that_holds_no_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        tensors.open_state_dict(tmp_path / "x.pt")


def test_a_directory_without_weights_or_configuration(tmp_path, folder):
    with pytest.raises(UserError, match="holds no weights"):
        tensors.open_hf_directory(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        tensors.open_hf_directory(folder)
    with pytest.raises(UserError, match="is not a directory"):
        tensors.open_hf_directory(tmp_path / "none")
