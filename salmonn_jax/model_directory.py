"""Reading and writing of model directories and run directories, used by training, conversion and evaluation.

    MODEL/                              RUN/ (of `launch.train`)
      config.json                         config.json     also holds the recipe
      tokenizer.model                     tokenizer.model
      base/     weights, Orbax            base/           if the run started from random weights or merged a delta
      base.fingerprint                    base.fingerprint   with base/
      delta/    trained parameters        checkpoints/N/  delta, optimiser state, data state, step
                                          metrics.jsonl, tensorboard/, index.html (page of the run)

The weights of a model are those of its base, except for the parameters in its delta. `config.json` names the base,
which may be in another directory, and its fingerprint. Both kinds of directory can be loaded as a model; a run
directory gives the model of its latest whole checkpoint, and RUN/checkpoints/N that of this checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax

from salmonn_jax import config as configuration
from salmonn_jax import distributed, weights
from salmonn_jax.checkpoint_files import CHECKPOINTS_DIR, DELTA, check_checkpoint, newest_whole_checkpoint
from salmonn_jax.config import ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_write, copy_file
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import ModelStructure, Params
from salmonn_jax.paths import Path, PathLike, absolute, as_path, is_url, join
from salmonn_jax.sharding import LOCAL, Placement
from salmonn_jax.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
FINGERPRINT_FILE = "base.fingerprint"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
# Files that are copied but not read here: a conversion back to Hugging Face needs them.
_EXTRA_HF_FILES = ("special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template.jinja")


@dataclasses.dataclass(frozen=True)
class BaseWeights:
    """Location and fingerprint of base weights, to which a delta is applied."""

    path: Path
    fingerprint: str  # see `salmonn_jax.weights.fingerprint`


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """Configuration, tokenizer and fingerprint of a model or run directory. The base weights are not read."""

    config: ModelConfig
    tokenizer: Tokenizer | None  # None if the model has no language model
    base: BaseWeights
    delta_path: Path | None  # checkpoint of the delta; None if the model has none

    @functools.cached_property
    def fingerprint(self) -> str:
        """Fingerprint of base and delta together, as in `LoadedModel`. It reads the delta."""
        return _model_fingerprint(
            self.base, None if self.delta_path is None else weights.fingerprint_checkpoint(self.delta_path, "float32")
        )


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model loaded from a directory."""

    config: ModelConfig
    structure: ModelStructure
    params: Params  # base with the delta applied
    tokenizer: Tokenizer | None  # None if the model has no language model
    base: BaseWeights
    delta_path: Path | None  # checkpoint of the delta; None if the model has none
    delta_param_paths: frozenset[str]  # paths of the parameters that are in the delta
    fingerprint: str  # fingerprint of base and delta together, for prediction records


def read_model_config(directory: PathLike) -> ModelConfig:
    """Returns the configuration of the model in a model or run directory. Raises UserError if it is neither."""
    return configuration.from_dict(ModelConfig, read_config_json(directory)["model"])


def open_model(directory: PathLike) -> ModelFiles:
    """Opens a model or run directory without reading its base weights.

    Raises:
      UserError: the directory is neither, or files are missing.
    """
    directory = as_path(directory)
    description = read_config_json(directory)
    config = configuration.from_dict(ModelConfig, description["model"])
    base = find_base(directory, description)
    tokenizer = None if config.llama is None else load_tokenizer(config_dir(directory))
    return ModelFiles(config, tokenizer, base, latest_delta(directory))


def load_model(directory: PathLike, placement: Placement = LOCAL, activation_dtype: str = "float32") -> LoadedModel:
    """Loads a model or run directory.

    Args:
      directory: model or run directory, or a checkpoint in one, RUN/checkpoints/N.
      placement: dtype and sharding of each parameter.
      activation_dtype: dtype in which the model computes.

    Raises:
      UserError: the directory is neither, or files are missing or do not match.
    """
    files = open_model(directory)
    config, base, delta_path = files.config, files.base, files.delta_path
    structure = parameters.model_structure(config, activation_dtype)
    params = weights.load(base.path, placement)
    delta = {} if delta_path is None else weights.load(delta_path, _delta_placement(placement))
    shapes = structure.shapes
    loaded_shapes = {path: value.shape for path, value in (params | delta).items()}
    mismatched = sorted(set(shapes) ^ set(loaded_shapes)) or [
        p for p in loaded_shapes if shapes[p].shape != loaded_shapes[p]
    ]
    if mismatched:
        raise UserError(
            f"{directory} has weights that do not match its config.json: {mismatched[0]} and {len(mismatched) - 1} "
            "more are missing, unknown or have another shape; convert or copy the model again"
        )
    fingerprint = _model_fingerprint(base, None if delta_path is None else weights.fingerprint(delta))
    return LoadedModel(
        config, structure, params | delta, files.tokenizer, base, delta_path, frozenset(delta), fingerprint
    )


def _delta_placement(placement: Placement) -> Callable[[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
    """Returns the placement of a delta, whose parameters are all trainable."""
    return lambda path, leaf: dataclasses.replace(placement, trainable_paths=frozenset([path]))(path, leaf)


def config_dir(directory: PathLike) -> Path:
    """Returns the directory of `config.json` and the tokenizer: the run of RUN/checkpoints/N, or else the directory."""
    directory = as_path(directory)
    is_checkpoint = directory.name.isdecimal() and directory.parent.name == CHECKPOINTS_DIR
    return directory.parent.parent if is_checkpoint else directory


def read_config_json(directory: PathLike) -> dict[str, Any]:
    """Returns the contents of `config.json`. Raises UserError if the directory has none of this format."""
    path = config_dir(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a model or run directory: it has no config.json")
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT_VERSION:
        raise UserError(f'{path} was not written by salmonn_jax (no "format": {FORMAT_VERSION})')
    return description


def find_base(directory: PathLike, description: dict[str, Any]) -> BaseWeights:
    """Returns the base weights of a model or run directory.

    Args:
      directory: model or run directory.
      description: contents of its `config.json`; a relative path in it is relative to `directory`.

    Raises:
      UserError: the base weights are missing or have another fingerprint.
    """
    path = join(config_dir(directory), description["base"]["path"])
    if not path.is_dir():
        raise UserError(
            f"the base weights of {directory} are not at {path}; if their directory was moved, move it back"
        )
    base = BaseWeights(absolute(path), description["base"]["fingerprint"])
    fingerprint_file = path.with_name(FINGERPRINT_FILE)
    if not fingerprint_file.is_file() or fingerprint_file.read_text().strip() != base.fingerprint:
        raise UserError(
            f"the base weights at {path} have changed since {directory} was created; restore the earlier ones"
        )
    return base


def latest_delta(directory: PathLike) -> Path | None:
    """Returns the path of the delta of a model directory or of a run's latest checkpoint; None if there is none.

    A checkpoint that is not whole is reported and passed over (see `newest_whole_checkpoint`). For RUN/checkpoints/N it
    is that of this checkpoint.

    Raises:
      UserError: the directory is a checkpoint that does not exist or is not whole, or a run without a whole checkpoint.
    """
    directory = as_path(directory)
    if config_dir(directory) != directory:
        check_checkpoint(directory)
        return directory / DELTA
    if (directory / DELTA).is_dir():
        return directory / DELTA
    checkpoint = newest_whole_checkpoint(directory)
    return None if checkpoint is None else checkpoint / DELTA


def can_start_run(directory: Path) -> bool:
    """Returns whether a run may start in a directory.

    The directory must be absent or empty, or contain only files of a run that was interrupted during its start.
    """
    if not directory.exists():
        return True
    known_files = (*TOKENIZER_FILES, *_EXTRA_HF_FILES, FINGERPRINT_FILE)
    return directory.is_dir() and all(
        p.name in known_files or p.match("config.json.*.unfinished") or _is_weights(p) for p in directory.iterdir()
    )


def _is_weights(path: Path) -> bool:
    """Returns whether a path is an Orbax checkpoint, finished or not."""
    if is_url(path) and path.name == "base":  # in a bucket, Orbax writes to the final path, `_METADATA` last
        return True
    return path.is_dir() and ("orbax-checkpoint-tmp" in path.name or (path / "_METADATA").is_file())


def tokenizer_fingerprint(directory: PathLike) -> str:
    """Returns a hash of the tokenizer files of a model or run directory."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = config_dir(directory) / name
        if path.is_file():
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copies the tokenizer files that exist in `source` to `directory`."""
    source = config_dir(source)
    for name in (*TOKENIZER_FILES, *_EXTRA_HF_FILES):
        if (source / name).is_file():
            copy_file(source / name, directory / name)


def write_config_and_tokenizer(
    directory: Path,
    model_config: ModelConfig,
    base: BaseWeights,
    tokenizer_dir: Path | None,
    **extra_fields: Any,
) -> None:
    """Copies the tokenizer files and writes `config.json`, which marks the directory as complete and so comes last.

    Every process calls it. Process 0 writes, and the others wait until the file is written.

    Args:
      directory: model or run directory.
      model_config: configuration of the model.
      base: base weights; the stored path is relative if they are inside `directory`.
      tokenizer_dir: directory of the tokenizer files; None for a model without a language model.
      **extra_fields: further fields of `config.json`, as JSON values.
    """
    if not distributed.is_main_process():
        distributed.barrier("config.json is written")
        return
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        copy_tokenizer(tokenizer_dir, directory)
    path = absolute(base.path)
    if path.is_relative_to(absolute(directory)):
        path = path.relative_to(absolute(directory))
    description = {
        "format": FORMAT_VERSION,
        "model": configuration.to_dict(model_config),
        "base": {"path": str(path), "fingerprint": base.fingerprint},
        **extra_fields,
    }
    with atomic_write(directory / "config.json") as unfinished:
        unfinished.write_text(json.dumps(description, indent=1) + "\n")
    distributed.barrier("config.json is written")


def save_base(directory: Path, params: Params) -> BaseWeights:
    """Writes base weights to `directory/base`, replacing those of an interrupted attempt."""
    path = absolute(directory / "base")
    return write_fingerprint(path, weights.save(path, params))


def save_merged_base(directory: Path, base: BaseWeights, delta_path: Path) -> BaseWeights:
    """Applies a delta to base weights and writes the result to `directory/base`.

    Every process calls it, and process 0 writes.

    Args:
      directory: directory in which the new base is written.
      base: base weights to which the delta is applied.
      delta_path: checkpoint of the delta. Parameters keep the dtype they have on disk.
    """
    path = absolute(directory / "base")
    if distributed.is_main_process():
        directory.mkdir(parents=True, exist_ok=True)
        merged = weights.open_params(base.path) | weights.open_params(delta_path)
        write_fingerprint(path, weights.save_streamed(path, merged))
    distributed.barrier("a base is merged", 3600)
    return BaseWeights(path, path.with_name(FINGERPRINT_FILE).read_text().strip())


def write_fingerprint(path: Path, fingerprint: str) -> BaseWeights:
    """Writes the fingerprint of weights to a file next to them, so that a check need not read all weights (26 GB)."""
    if distributed.is_main_process():
        path.with_name(FINGERPRINT_FILE).write_text(fingerprint + "\n")
    return BaseWeights(path, fingerprint)


def _model_fingerprint(base: BaseWeights, delta_fingerprint: str | None) -> str:
    """Returns the fingerprint of a model from that of its base and that of its delta, if it has one."""
    if delta_fingerprint is None:
        return base.fingerprint
    return hashlib.sha256(f"{base.fingerprint} {delta_fingerprint}".encode()).hexdigest()
