"""Conversion of PyTorch checkpoints to a model directory, used by `launch.convert to-jax`.

`plan_salmonn` and `plan_component` open and check the checkpoints. `write_model` then reads and writes the weights.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from salmonn_jax import model_directory, weights
from salmonn_jax.config import AudioConfig, LoraConfig, ModelConfig
from salmonn_jax.conversion import mapping, settings, tables, tensors, torch_checkpoints, vicuna
from salmonn_jax.conversion.mapping import LazyParam
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_output
from salmonn_jax.models import parameters
from salmonn_jax.tokenizer import load_tokenizer

# Patterns of the parameters that the original trains. A SALMONN checkpoint holds exactly these.
ORIGINAL_TRAINABLE = ("query_tokens", "qformer", "norms", "projection", "adapters")  # what the original trains


# Flags of the original's `config` that must be true. The other values are not supported here.
_REQUIRED_FLAGS = ("use_speech_Qformer", "window_level_Qformer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """Conversion whose inputs are validated. `write_model` reads the tensors and writes them.

    Attributes:
      config: configuration of the converted model.
      base: frozen parameters by path.
      delta: trained parameters by path; empty without a SALMONN checkpoint.
      newly_initialized: paths of the trained parameters that get random values, without a SALMONN checkpoint.
      tokenizer_dir: directory with the tokenizer files.
      resolved_options: value and origin of each field of `SalmonnOptions` that a checkpoint can have.
      ignored: reason why each ignored tensor or entry of the checkpoints is not needed.
    """

    config: ModelConfig
    base: dict[str, LazyParam]
    delta: dict[str, LazyParam] = dataclasses.field(default_factory=dict)
    newly_initialized: frozenset[str] = frozenset()
    tokenizer_dir: pathlib.Path | None
    resolved_options: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    ignored: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Returns the number of bytes that `write_model` copies from the checkpoints."""
        params = [*self.base.values(), *self.delta.values()]
        return sum(math.prod(param.shape) * param.dtype.itemsize for param in params)


def plan_salmonn(
    whisper: pathlib.Path,
    beats: pathlib.Path | None,
    llm: pathlib.Path,
    checkpoint: pathlib.Path | None,
    options: settings.SalmonnOptions,
    *,
    own_checkpoint: bool = False,
) -> ConversionPlan:
    """Opens the checkpoints of a whole SALMONN and checks that they fit together.

    Args:
      whisper: Hugging Face directory or OpenAI `.pt` file.
      beats: BEATs `.pt` file; None for a model whose only encoder is Whisper.
      llm: Hugging Face directory of the language model.
      checkpoint: SALMONN `.pth` of the original; None for a model that is not trained yet.
      options: settings that override those of the checkpoint.
      own_checkpoint: whether the user trained the checkpoint. If so, only the hidden size of the language model is
        checked.

    Raises:
      UserError: a checkpoint cannot be read, or does not fit the others.
    """
    if checkpoint is not None and options.audio_tokens != "window":
        raise UserError(
            f"--audio-tokens {options.audio_tokens}: the model of {checkpoint} was trained with the audio tokens of "
            "the whole window; omit this option or --checkpoint"
        )
    whisper_checkpoint, llm_checkpoint = torch_checkpoints.open_whisper(whisper), torch_checkpoints.open_llama(llm)
    load_tokenizer(llm)  # raises UserError if it is absent or damaged
    beats_checkpoint = None if beats is None else torch_checkpoints.open_beats(beats)
    state_dict, checkpoint_config, ignored = ({}, {}, {}) if checkpoint is None else _read_checkpoint(checkpoint)
    if checkpoint is not None:
        hidden_size = settings.tensor_shape(state_dict, "speech_llama_proj.weight", checkpoint)[0]
        vicuna.check_llm(hidden_size, checkpoint, llm_checkpoint.config, llm, own_checkpoint=own_checkpoint)
        if beats_checkpoint is None and "ln_audio.weight" in state_dict:
            raise UserError(f"{checkpoint} was trained with BEATs; give its file with --beats")
    resolved = settings.resolve_options(options, checkpoint_config, checkpoint)
    values = {name: value for name, (value, _) in resolved.items()}
    config = ModelConfig(
        audio=AudioConfig(window_seconds=whisper_checkpoint.window_seconds, tokens=options.audio_tokens),
        whisper=whisper_checkpoint.config,
        beats=beats_checkpoint and beats_checkpoint.config,
        qformer=settings.qformer_config(state_dict, values, whisper_checkpoint.window_seconds, checkpoint),
        llama=llm_checkpoint.config,
        lora=settings.lora_config(state_dict, values["lora_alpha"], checkpoint_config),
        prompt_template=values["prompt_template"],
        pad_classes=1,
    )
    shapes = _parameter_shapes(config)
    trainable_paths = original_trainable_paths(shapes)
    frozen = {path: shape for path, shape in shapes.items() if path not in trainable_paths}
    components = [c for c in (whisper_checkpoint, beats_checkpoint, llm_checkpoint) if c is not None]
    match_args = [component.match_args(frozen) for component in components]
    if checkpoint is not None:
        match_args.append((tables.SALMONN, {path: shapes[path] for path in trainable_paths}, state_dict))
    params = mapping.match_checkpoints(*match_args)
    for table, _, tensors_of_table in match_args:
        mapping.check_copies(table, tensors_of_table)
        ignored |= mapping.ignored_tensors(table, tensors_of_table)
    return ConversionPlan(
        config=config,
        base={path: params[path] for path in frozen},
        delta={path: params[path] for path in trainable_paths} if state_dict else {},
        newly_initialized=frozenset() if state_dict else frozenset(trainable_paths),
        tokenizer_dir=pathlib.Path(llm),
        resolved_options=resolved,
        ignored=ignored,
    )


def plan_component(kind: str, path: pathlib.Path) -> ConversionPlan:
    """Opens the checkpoint of one component, to convert it without the others.

    Args:
      kind: "whisper", "beats" or "llama".
      path: the checkpoint, in a format that `salmonn_jax.conversion.torch_checkpoints` reads.

    Raises:
      UserError: the checkpoint cannot be read, or its tensors do not match its configuration.
    """
    checkpoint = {
        "whisper": torch_checkpoints.open_whisper,
        "beats": torch_checkpoints.open_beats,
        "llama": torch_checkpoints.open_llama,
    }[kind](path)
    mapping.check_copies(checkpoint.table, checkpoint.tensors)
    if kind == "llama":
        load_tokenizer(path)  # raises UserError if it is absent or damaged
    disabled = dict.fromkeys({"whisper", "beats", "qformer", "llama"} - {kind})
    # A language model without the rest gets the bare prompt and no adapters.
    config = ModelConfig(
        **disabled, **{kind: checkpoint.config}, lora=LoraConfig(target_modules=()), prompt_template="{}"
    )
    if kind == "whisper":
        config = dataclasses.replace(config, audio=AudioConfig(window_seconds=checkpoint.window_seconds))
    return ConversionPlan(
        config=config,
        base=mapping.match_checkpoints(checkpoint.match_args(_parameter_shapes(config))),
        tokenizer_dir=pathlib.Path(path) if kind == "llama" else None,
        ignored=mapping.ignored_tensors(checkpoint.table, checkpoint.tensors),
    )


def write_model(
    plan: ConversionPlan, output: pathlib.Path, on_write: Callable[[int], object] = lambda count: None
) -> None:
    """Writes the model directory of a plan.

    Args:
      plan: the plan.
      output: directory that does not exist yet, or is empty. It appears when everything is written.
      on_write: called with the number of bytes after each piece.

    Raises:
      UserError: `output` is not empty.
      OSError: the disk is full or fails. Nothing is left behind.
    """
    with atomic_output(output) as unfinished:
        # The delta is written first, so that the memory for its initialisation is free before the base is copied.
        if plan.newly_initialized:
            weights.save(unfinished / "delta", _initialize(plan.config, plan.newly_initialized))
        elif plan.delta:
            weights.save_streamed(unfinished / "delta", plan.delta, on_write)
        path = (unfinished / "base").resolve()
        base = model_directory.write_fingerprint(path, weights.save_streamed(path, plan.base, on_write))
        model_directory.write_config_and_tokenizer(unfinished, plan.config, base, plan.tokenizer_dir)


def original_trainable_paths(paths: Iterable[str]) -> set[str]:
    """Returns the parameter paths that the original trains."""
    patterns = [parameters.MODULES[name] for name in ORIGINAL_TRAINABLE]
    return {path for path in paths if any(re.fullmatch(pattern, path) for pattern in patterns)}


def _parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a model, by path."""
    return {path: leaf.shape for path, leaf in parameters.model_structure(config).shapes.items()}


def _initialize(config: ModelConfig, paths: frozenset[str]) -> parameters.Params:
    """Returns random initial values of the parameters `paths`. The function is jitted, so XLA drops all others."""
    return jax.jit(lambda: {p: x for p, x in parameters.init_params(config, 0).items() if p in paths})()


def _read_checkpoint(path: pathlib.Path) -> tuple[tensors.LazyStateDict, dict[str, Any], dict[str, str]]:
    """Reads a SALMONN `.pth`.

    Returns:
      The tensors of its `model`, the `model` section of its `config` (empty if it has none), and its ignored entries
      with the reason.
    """
    checkpoint = tensors.load_torch(path)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        raise UserError(f"{path} is not a SALMONN checkpoint: it has no `model`")
    config = checkpoint.get("config")
    model_section = config.get("model") if isinstance(config, Mapping) else None
    model_section = dict(model_section) if isinstance(model_section, Mapping) else {}
    for name in _REQUIRED_FLAGS:
        if not model_section.get(name, True):
            raise UserError(f"{path} was trained with {name}=False; only the window-level Q-Former can be converted")
    ignored = {name: "training state" for name in checkpoint if name not in ("model", "config")}
    return tensors.lazy_state_dict(checkpoint["model"], path, "model"), model_section, ignored
