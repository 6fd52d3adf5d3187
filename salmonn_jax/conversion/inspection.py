"""Description of a checkpoint's contents without converting it, used by `launch.convert inspect`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

from salmonn_jax.conversion import mapping, tables
from salmonn_jax.conversion.formats import hf_config, tensors
from salmonn_jax.conversion.formats.tensors import LazyStateDict
from salmonn_jax.conversion.mapping import Table
from salmonn_jax.errors import UserError

UNKNOWN_TABLE = Table("state dict of an unknown model", ())


def describe_checkpoint(path: pathlib.Path, *, verbose: bool = False) -> Iterator[str]:
    """Yields lines: the kind of checkpoint, its other entries, the converted tensors and the ignored tensors.

    Args:
      path: checkpoint file or Hugging Face directory.
      verbose: list each ignored tensor; otherwise one line per reason counts them.

    Raises:
      UserError: the path cannot be read, or holds no tensors.
    """
    table, state_dict, other_entries = _detect_checkpoint(pathlib.Path(path))
    yield f"{path}: {table.kind}, {len(state_dict)} tensors"
    for entry in other_entries:
        yield f"  other entry: {entry}"
    ignored = mapping.ignored_tensors(table, state_dict)
    for name, tensor in state_dict.items():
        if name not in ignored:
            yield f"  {name} {list(tensor.shape)} {tensor.dtype}"
        elif verbose:
            yield f"  {name} {list(tensor.shape)} {tensor.dtype}  ignored: {ignored[name]}"
    if not verbose:
        for line in mapping.summarize_ignored(ignored):
            yield f"  {line}"


def _detect_checkpoint(path: pathlib.Path) -> tuple[Table, LazyStateDict, list[str]]:
    """Returns the table for this kind of checkpoint, its tensors, and descriptions of its other entries."""
    if path.is_dir():
        config, state_dict = tensors.open_hf_directory(path)
        model_type = config.get("model_type")
        other_entries = [f"config.json with model_type={model_type!r}"]
        if model_type == "whisper":
            return tables.whisper_hf(""), state_dict, other_entries
        if model_type in list(hf_config.LANGUAGE_MODELS):
            table = tables.llama(tie_word_embeddings=bool(config.get("tie_word_embeddings")))
            return table, state_dict, other_entries
        return UNKNOWN_TABLE, state_dict, other_entries
    if path.suffix == ".safetensors":
        return UNKNOWN_TABLE, tensors.open_state_dict(path), []
    checkpoint = tensors.load_torch(path)
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a dictionary of tensors")
    for key, sibling_key, table in (
        ("model", "cfg", tables.beats(16)),
        ("model_state_dict", "dims", tables.WHISPER_OPENAI),
        ("model", "model", tables.SALMONN),
    ):
        if isinstance(checkpoint.get(key), Mapping) and sibling_key in checkpoint:
            if table is tables.SALMONN and "speech_query_tokens" not in checkpoint[key]:
                table = UNKNOWN_TABLE
            other_entries = [_describe_entry(name, value) for name, value in checkpoint.items() if name != key]
            return table, tensors.lazy_state_dict(checkpoint[key], path, key), other_entries
    return UNKNOWN_TABLE, tensors.lazy_state_dict(checkpoint, path), []


def _describe_entry(name: str, value: object) -> str:
    """Returns a short description of a checkpoint entry that holds no weights."""
    if name in ("optimizer", "scaler"):
        return f"{name} (ignored: training state)"
    if name == "config" and isinstance(value, Mapping) and isinstance(value.get("model"), Mapping):
        return f"{name} of the model {dict(value['model'])!r}"
    return f"{name} {value!r}" if len(repr(value)) < 800 else f"{name} (a {type(value).__name__})"
