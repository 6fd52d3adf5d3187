"""Model directories and run directories: what is written where, and how weights come back.

    MODEL/                              RUN/ (of `launch.train`)
      config.json                         config.json     also holds the resolved run configuration
      tokenizer.model                     tokenizer.model
      base/     weights, Orbax            base/           only if the run needed a new base
      base.fingerprint                    base.fingerprint
      delta/    what was trained          checkpoints/N/  delta, optimiser, place in the data, step
                                          metrics.jsonl, tensorboard/

`config.json` names the base (which may lie in another directory) and its fingerprint. Both kinds can be loaded: a run
stands for its latest checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax

from salmonn_jax import config as configuration
from salmonn_jax import distributed, weights
from salmonn_jax.config import ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_write
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import ModelStructure, Params
from salmonn_jax.sharding import LOCAL, Placement
from salmonn_jax.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
CHECKPOINTS_DIR = "checkpoints"
FINGERPRINT_FILE = "base.fingerprint"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
# Not read here, and kept for whoever takes the language model back to Hugging Face.
_EXTRA_HF_FILES = ("special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template.jinja")


@dataclasses.dataclass(frozen=True)
class BaseWeights:
    """Where the weights lie that a delta is laid over, and which they are."""

    path: pathlib.Path
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model read from a directory: base and delta joined."""

    config: ModelConfig
    structure: ModelStructure
    params: Params
    tokenizer: Tokenizer | None  # None where there is no language model
    base: BaseWeights
    delta_param_paths: frozenset[str]  # which parameters came from the delta
    fingerprint: str  # of base and delta together, for prediction records


def load_model(directory: pathlib.Path, placement: Placement = LOCAL) -> LoadedModel:
    """Reads a model or run directory. Raises UserError if it is not one, or not whole."""
    directory = pathlib.Path(directory)
    description = read_config_json(directory)
    config = configuration.from_dict(ModelConfig, description["model"])
    base = find_base(directory, description)
    structure = parameters.model_structure(config)
    tokenizer = None if config.llama is None else load_tokenizer(directory)
    params = weights.load(base.path, placement)
    delta_path = latest_delta(directory)
    delta = {} if delta_path is None else weights.load(delta_path, _delta_placement(placement))
    shapes = structure.shapes
    found = {path: value.shape for path, value in (params | delta).items()}
    wrong = sorted(set(shapes) ^ set(found)) or [p for p in found if shapes[p].shape != found[p]]
    if wrong:
        raise UserError(
            f"{directory} does not hold the model its config.json describes: {wrong[0]} and {len(wrong) - 1} more"
        )
    fingerprint = (
        base.fingerprint if delta_path is None else _combine_fingerprints(base.fingerprint, weights.fingerprint(delta))
    )
    return LoadedModel(config, structure, params | delta, tokenizer, base, frozenset(delta), fingerprint)


def _delta_placement(placement: Placement) -> Callable[[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
    """Places of a delta: all of it was trained."""
    return lambda path, leaf: dataclasses.replace(placement, trainable_paths=frozenset([path]))(path, leaf)


def read_config_json(directory: pathlib.Path) -> dict[str, Any]:
    """The contents of `config.json`. Raises UserError if the directory has none of this format."""
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a model or run directory: it has no config.json")
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT_VERSION:
        raise UserError(f'{path} was not written by salmonn_jax (no "format": {FORMAT_VERSION})')
    return description


def find_base(directory: pathlib.Path, description: dict[str, Any]) -> BaseWeights:
    """The base that a description names; a relative path is relative to the directory."""
    path = pathlib.Path(directory) / description["base"]["path"]
    if not path.is_dir():
        raise UserError(f"the base weights of {directory} are not at {path}; was the directory they belong to moved?")
    base = BaseWeights(path.resolve(), description["base"]["fingerprint"])
    beside = path.with_name(FINGERPRINT_FILE)
    if not beside.is_file() or beside.read_text().strip() != base.fingerprint:
        raise UserError(f"the base weights at {path} are not those {directory} was made with; were they made anew?")
    return base


def latest_delta(directory: pathlib.Path) -> pathlib.Path | None:
    """The delta of a model directory, or of the latest finished checkpoint of a run directory."""
    directory = pathlib.Path(directory)
    if (directory / "delta").is_dir():
        return directory / "delta"
    steps = sorted(int(p.name) for p in directory.glob(f"{CHECKPOINTS_DIR}/*") if p.name.isdigit())
    return directory / CHECKPOINTS_DIR / str(steps[-1]) / "delta" if steps else None


def can_start_run(directory: pathlib.Path) -> bool:
    """Whether a run may begin in a directory: absent, empty, or with no more than what a begun run left."""
    if not directory.exists():
        return True
    ours = (*TOKENIZER_FILES, *_EXTRA_HF_FILES, FINGERPRINT_FILE)
    return directory.is_dir() and all(
        p.name in ours or p.match("config.json.*.unfinished") or _is_weights(p) for p in directory.iterdir()
    )


def _is_weights(path: pathlib.Path) -> bool:
    """Whether a directory was written, or begun, by Orbax."""
    return path.is_dir() and ("orbax-checkpoint-tmp" in path.name or (path / "_METADATA").is_file())


def copy_tokenizer(source: pathlib.Path, directory: pathlib.Path) -> None:
    """Copies the tokenizer files there are."""
    for name in (*TOKENIZER_FILES, *_EXTRA_HF_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def write_config_and_tokenizer(
    directory: pathlib.Path,
    model_config: ModelConfig,
    base: BaseWeights,
    tokenizer_dir: pathlib.Path | None,
    **more: Any,
) -> None:
    """Writes `config.json` (last, so that a directory without one is unfinished) and copies the tokenizer files.

    One process writes; all go on when it is there.
    """
    if not distributed.is_main_process():
        distributed.barrier("config.json is written")
        return
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        copy_tokenizer(tokenizer_dir, directory)
    inside = base.path.resolve().is_relative_to(directory.resolve())
    path = base.path.resolve().relative_to(directory.resolve()) if inside else base.path.resolve()
    description = {
        "format": FORMAT_VERSION,
        "model": configuration.to_dict(model_config),
        "base": {"path": str(path), "fingerprint": base.fingerprint},
        **more,
    }
    with atomic_write(directory / "config.json") as unfinished:
        unfinished.write_text(json.dumps(description, indent=1) + "\n")
    distributed.barrier("config.json is written")


def save_base(directory: pathlib.Path, params: Params) -> BaseWeights:
    """Writes weights as `directory/base`, replacing an unfinished one."""
    path = (directory / "base").resolve()
    return write_fingerprint(path, weights.save(path, params))


def save_merged_base(directory: pathlib.Path, base: BaseWeights, delta_path: pathlib.Path) -> BaseWeights:
    """Writes `directory/base` of a base and a delta laid over it, as they are on disk. Every process calls it."""
    path = (directory / "base").resolve()
    if distributed.is_main_process():
        directory.mkdir(parents=True, exist_ok=True)
        merged = weights.open_params(base.path) | weights.open_params(delta_path)
        write_fingerprint(path, weights.save_streamed(path, merged))
    distributed.barrier("a base is merged", 3600)
    return BaseWeights(path, path.with_name(FINGERPRINT_FILE).read_text().strip())


def write_fingerprint(path: pathlib.Path, fingerprint: str) -> BaseWeights:
    """Writes the fingerprint of weights beside them: to check it there, 26 GB need not be read."""
    if distributed.is_main_process():
        path.with_name(FINGERPRINT_FILE).write_text(fingerprint + "\n")
    return BaseWeights(path, fingerprint)


def _combine_fingerprints(*fingerprints: str) -> str:
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
