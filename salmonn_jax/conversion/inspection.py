"""What a checkpoint is, before anyone converts it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

from salmonn_jax.conversion import tables, tensors, torch_checkpoints
from salmonn_jax.conversion.mapping import Table
from salmonn_jax.conversion.tensors import LazyStateDict
from salmonn_jax.errors import UserError

UNKNOWN_TABLE = Table("state dict of an unknown model", ())


def describe_checkpoint(path: pathlib.Path) -> Iterator[str]:
    """Yields lines: the kind of checkpoint, what else the file holds, and each tensor with what becomes of it.

    Raises:
      UserError: it cannot be read, or holds no tensors.
    """
    table, found, beside = _detect_checkpoint(pathlib.Path(path))
    yield f"{path}: {table.kind}, {len(found)} tensors"
    for note in beside:
        yield f"  beside them: {note}"
    for name, tensor in found.items():
        why = table.ignore_reason(name)
        yield f"  {name} {list(tensor.shape)} {tensor.dtype}" + (f"  not needed: {why}" if why else "")


def _detect_checkpoint(path: pathlib.Path) -> tuple[Table, LazyStateDict, list[str]]:
    if path.is_dir():
        config, found = tensors.open_hf_directory(path)
        kind = config.get("model_type")
        beside = [f"config.json of a model of type {kind!r}"]
        if kind == "whisper":
            return tables.whisper_hf(""), found, beside
        if kind in torch_checkpoints.LLAMA_FAMILY:
            return tables.llama(tie_word_embeddings=bool(config.get("tie_word_embeddings"))), found, beside
        return UNKNOWN_TABLE, found, beside
    if path.suffix == ".safetensors":
        return UNKNOWN_TABLE, tensors.open_state_dict(path), []
    loaded = tensors.load_torch(path)
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    for key, fellow, table in (
        ("model", "cfg", tables.beats(16)),
        ("model_state_dict", "dims", tables.WHISPER_OPENAI),
        ("model", "model", tables.SALMONN),
    ):
        if isinstance(loaded.get(key), Mapping) and fellow in loaded:
            if table is tables.SALMONN and "speech_query_tokens" not in loaded[key]:
                table = UNKNOWN_TABLE
            beside = [_describe_entry(name, value) for name, value in loaded.items() if name != key]
            return table, tensors.lazy_state_dict(loaded[key], path, key), beside
    return UNKNOWN_TABLE, tensors.lazy_state_dict(loaded, path), []


def _describe_entry(name: str, value: object) -> str:
    if name in ("optimizer", "scaler"):
        return f"{name} (not needed: a conversion begins training anew)"
    if name == "config" and isinstance(value, Mapping) and isinstance(value.get("model"), Mapping):
        return f"{name} of the model {dict(value['model'])!r}"
    return f"{name} {value!r}" if len(repr(value)) < 800 else f"{name} (a {type(value).__name__})"
