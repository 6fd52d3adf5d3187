"""Conversion of the golden set back to PyTorch: the original's checkpoint, PEFT, and merged adapters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launch import convert
from salmonn_jax import model_directory, weights
from salmonn_jax.conversion import mapping, tables, to_torch
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError
from tests.conversion.golden_files import checkpoint, convert_arguments, equal_bytes, rewritten
from tests.golden import MINI


def test_the_checkpoint_comes_back_byte_for_byte(converted, tmp_path):
    output = tmp_path / "back" / "salmonn.pth"
    convert.main(["to-torch", "salmonn", "--model", str(converted), "--output", str(output)])
    theirs = checkpoint(MINI.directory / "salmonn.pth")
    for name in mapping.ignored_tensors(tables.SALMONN, theirs):
        del theirs[name]
    equal_bytes(checkpoint(output), theirs)
    with pytest.raises(UserError, match="already exists"):
        convert.main(["to-torch", "salmonn", "--model", str(converted), "--output", str(output)])
    # The checkpoint that we write names its number of Q-Former heads, which the original's does not.
    again = tmp_path / "again"
    convert.main(convert_arguments(again, **{"--checkpoint": output, "--qformer-num-attention-heads": None}))
    one, two = (model_directory.read_config_json(place) for place in (converted, again))
    assert one["model"] == two["model"] and one["base"]["fingerprint"] == two["base"]["fingerprint"]
    assert weights.fingerprint(weights.load(converted / "delta")) == weights.fingerprint(weights.load(again / "delta"))


@pytest.mark.slow
def test_a_checkpoint_in_bfloat16_comes_back_byte_for_byte(tmp_path):
    import torch

    half = rewritten(
        tmp_path / "half.pth", model=lambda model: {name: value.to(torch.bfloat16) for name, value in model.items()}
    )
    convert.main(convert_arguments(tmp_path / "model", **{"--checkpoint": half}))
    convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "back.pth")])
    theirs = checkpoint(half)
    for name in mapping.ignored_tensors(tables.SALMONN, theirs):
        del theirs[name]
    equal_bytes(checkpoint(tmp_path / "back.pth"), theirs)


def test_a_model_that_the_original_cannot_run_is_not_written_in_its_format(untrained, tmp_path):
    message = r"--audio-tokens clip: .* was trained with the audio tokens of the whole window"
    with pytest.raises(UserError, match=message):
        convert.main(convert_arguments(tmp_path / "model", **{"--audio-tokens": "clip"}))
    assert model_directory.read_config_json(untrained)["model"]["audio"]["tokens"] == "clip"
    with pytest.raises(UserError, match=r"has model\.audio\.tokens=clip.*peft"):
        convert.main(["to-torch", "salmonn", "--model", str(untrained), "--output", str(tmp_path / "x.pth")])
    assert not (tmp_path / "x.pth").exists()


def test_adapters_are_written_under_the_names_of_peft(converted, tmp_path):
    convert.main(["to-torch", "peft", "--model", str(converted), "--output", str(tmp_path / "adapter")])
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (8, 32.0, ["q_proj", "v_proj"])
    theirs = checkpoint(MINI.directory / "salmonn.pth")
    expected = {
        name.replace("llama_model.", "").replace(".default", ""): tensor
        for name, tensor in theirs.items()
        if ".lora_" in name
    }
    equal_bytes(tensors.open_state_dict(tmp_path / "adapter" / "adapter_model.safetensors"), expected)


def test_adapters_are_merged_in_float32_and_written_in_shards(converted, tmp_path, monkeypatch):
    """Rounds float16 weights once."""
    monkeypatch.setattr(to_torch, "MAX_SHARD_BYTES", 50_000)
    convert.main(["to-torch", "llama", "--model", str(converted), "--output", str(tmp_path / "llm")])
    sizes = [path.stat().st_size for path in (tmp_path / "llm").glob("*.safetensors")]
    assert len(sizes) > 3 and max(sizes) < 50_000 + 10_000
    _, ours = tensors.open_hf_directory(tmp_path / "llm")
    _, theirs = tensors.open_hf_directory(MINI.directory / "vicuna")
    trained = checkpoint(MINI.directory / "salmonn.pth")
    for name, tensor in ours.items():
        before, after = theirs[name].read(), tensor.read()
        if "q_proj" in name or "v_proj" in name:
            stem = "llama_model.base_model.model." + name.removesuffix(".weight")
            low, high = (trained[f"{stem}.lora_{letter}.default.weight"].read() for letter in "AB")
            expected = before.astype(np.float64) + 4.0 * high.astype(np.float64) @ low.astype(np.float64)
            assert np.abs(expected - before).max() > 0.01
            # Half a unit in the last place of float16, and what float32 makes of a sum that lies in the middle.
            assert (np.abs(after - expected) <= 0.5001 * np.spacing(np.abs(after)) + 1e-7).all()
        else:
            assert after.tobytes() == before.tobytes(), name


def test_with_new_adapters_the_language_model_comes_back_byte_for_byte(untrained, tmp_path):
    """Includes zeros of either sign."""
    convert.main(["to-torch", "llama", "--model", str(untrained), "--output", str(tmp_path / "llm")])
    _, theirs = tensors.open_hf_directory(MINI.directory / "vicuna")
    for name in mapping.ignored_tensors(tables.llama(tie_word_embeddings=False), theirs):
        del theirs[name]
    equal_bytes(tensors.open_hf_directory(tmp_path / "llm")[1], theirs)
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["torch_dtype"]) == (1, 2, "float16")
    assert (tmp_path / "llm" / "special_tokens_map.json").is_file()
