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
from salmonn_jax.config import AudioConfig, LoraConfig, ModelConfig, from_dict
from salmonn_jax.conversion import mapping, tables, torch_checkpoints, vicuna
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.conversion.mapping import LazyParam
from salmonn_jax.conversion.settings import prompt_format
from salmonn_jax.conversion.settings.options import (
    SalmonnOptions,
    Setting,
    lora_config,
    qformer_config,
    resolve_settings,
    tensor_shape,
)
from salmonn_jax.conversion.torch_checkpoints import WhisperCheckpoint
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_output
from salmonn_jax.models import parameters
from salmonn_jax.paths import Path
from salmonn_jax.tokenizer import Tokenizer, load_tokenizer

# Modules that the original trains. A SALMONN checkpoint holds exactly their parameters.
ORIGINAL_TRAINABLE = ("query_tokens", "qformer", "norms", "projection", "adapters")
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
      settings: settings of Q-Former, adapters and loss by name; empty for a single component.
      prompt_origin: origin of the prompt template; empty for a single component.
      whisper_seconds: length of Whisper's position table before it is cut to the encoder input.
      ignored: reason why each ignored tensor or entry of the checkpoints is not needed.
    """

    config: ModelConfig
    base: dict[str, LazyParam]
    delta: dict[str, LazyParam] = dataclasses.field(default_factory=dict)
    newly_initialized: frozenset[str] = frozenset()
    tokenizer_dir: pathlib.Path | None
    settings: dict[str, Setting] = dataclasses.field(default_factory=dict)
    prompt_origin: str = ""
    whisper_seconds: float | None = None
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
    options: SalmonnOptions,
    *,
    own_checkpoint: bool = False,
) -> ConversionPlan:
    """Opens the checkpoints of a whole SALMONN and checks that they fit together.

    Args:
      whisper: Hugging Face directory or OpenAI `.pt` file.
      beats: BEATs `.pt` file; None for a model whose only encoder is Whisper.
      llm: Hugging Face directory of the language model.
      checkpoint: SALMONN `.pth` of the original; None for a model that is not trained yet.
      options: options of the user.
      own_checkpoint: whether the user trained the checkpoint. If so, only the hidden size of the language model is
        checked.

    Raises:
      UserError: a checkpoint cannot be read, or does not fit the others.
    """
    if own_checkpoint and checkpoint is None:
        raise UserError(
            "--own-checkpoint: there is no checkpoint to check; give it with --checkpoint, or omit this option"
        )
    whisper_checkpoint, llm_checkpoint = torch_checkpoints.open_whisper(whisper), torch_checkpoints.open_llama(llm)
    tokenizer = load_tokenizer(llm)
    audio = _audio_config(options, whisper_checkpoint, checkpoint)
    beats_checkpoint = None if beats is None else torch_checkpoints.open_beats(beats)
    state_dict, checkpoint_config, ignored = ({}, {}, {}) if checkpoint is None else read_checkpoint(checkpoint)
    if checkpoint is not None:
        hidden_size = tensor_shape(state_dict, "speech_llama_proj.weight", checkpoint, 2)[0]
        vicuna.check_llm(hidden_size, checkpoint, llm_checkpoint.config, llm, own_checkpoint=own_checkpoint)
        if beats_checkpoint is None and "ln_audio.weight" in state_dict:
            raise UserError(f"{checkpoint} was trained with BEATs; give its file with --beats")
    if checkpoint is None or options.prompt_template is not None:
        prompt = prompt_format.resolve(llm, tokenizer, options.prompt_template)
    else:
        prompt = prompt_format.from_checkpoint(llm, tokenizer, checkpoint_config, checkpoint)
    resolved = resolve_settings(options, llm_checkpoint.config, checkpoint, state_dict, checkpoint_config)
    config = _model_config(
        audio=audio,
        whisper=whisper_checkpoint.config,
        beats=beats_checkpoint and beats_checkpoint.config,
        qformer=qformer_config(resolved, audio.window_seconds),
        llama=llm_checkpoint.config,
        lora=lora_config(resolved, llm_checkpoint.config),
        pad_classes=resolved["pad_classes"].value,
        prompt_template=prompt.prompt_template,
        add_bos_token=prompt.add_bos_token,
        stop_token_ids=prompt.stop_token_ids,
    )
    _check_vocabulary(config, tokenizer, llm)
    if audio.window_seconds < whisper_checkpoint.window_seconds:
        whisper_checkpoint = cut_positions(whisper_checkpoint, audio.num_frames)
    shapes = parameter_shapes(config)
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
        settings=resolved,
        prompt_origin=prompt.origin,
        whisper_seconds=whisper_checkpoint.window_seconds,
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
    fields = dict.fromkeys(("whisper", "beats", "qformer", "llama")) | {kind: checkpoint.config}
    if kind == "whisper":
        fields["audio"] = AudioConfig(window_seconds=checkpoint.window_seconds)
    if kind == "llama":
        tokenizer = load_tokenizer(path)
        fields["stop_token_ids"] = prompt_format.read_stop_tokens(path, tokenizer, tokenizer.eos_token_id)
    # A language model without the rest gets the bare prompt and no adapters.
    config = _model_config(**fields, lora=LoraConfig(target_modules=()), prompt_template="{}")
    return ConversionPlan(
        config=config,
        base=mapping.match_checkpoints(checkpoint.match_args(parameter_shapes(config))),
        tokenizer_dir=pathlib.Path(path) if kind == "llama" else None,
        ignored=mapping.ignored_tensors(checkpoint.table, checkpoint.tensors),
    )


def write_model(plan: ConversionPlan, output: Path, on_write: Callable[[int], object] = lambda count: None) -> None:
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


def _audio_config(options: SalmonnOptions, whisper: WhisperCheckpoint, checkpoint: pathlib.Path | None) -> AudioConfig:
    """Returns the encoder input of a model.

    Raises:
      UserError: it is longer than Whisper's position table, or differs from that with which `checkpoint` was trained.
    """
    seconds = options.audio_window_seconds
    for name, changed in (("audio_tokens", options.audio_tokens == "clip"), ("audio_window_seconds", seconds)):
        if checkpoint is not None and changed:
            raise UserError(
                f"{options.flag(name)}: the model of {checkpoint} was trained with the audio tokens of the whole "
                f"window of {whisper.window_seconds:g} s; omit this option or --checkpoint"
            )
    if seconds is not None and seconds > whisper.window_seconds:
        raise UserError(
            f"{options.flag('audio_window_seconds')}: must be at most {whisper.window_seconds:g}, the seconds that "
            "Whisper's position table covers"
        )
    values = {"window_seconds": whisper.window_seconds if seconds is None else seconds}
    return from_dict(AudioConfig, values | {"tokens": options.audio_tokens or "window"}, path_prefix="audio: ")


def cut_positions(checkpoint: WhisperCheckpoint, num_frames: int) -> WhisperCheckpoint:
    """Returns a Whisper checkpoint whose position table is cut to its first `num_frames` rows."""
    name = next(rule.torch_name for rule in checkpoint.table.rules if rule.path == "whisper/positions")
    if name not in checkpoint.tensors:  # matching reports it
        return checkpoint
    table = checkpoint.tensors[name]
    cut = tensors.LazyTensor((num_frames, *table.shape[1:]), table.dtype, lambda: table.read()[:num_frames])
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, name: cut})


def _model_config(**fields: Any) -> ModelConfig:
    """Returns the configuration of a model. Raises UserError if its parts do not go together."""
    values = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value for name, value in fields.items()
    }
    return from_dict(ModelConfig, values)


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, llm: pathlib.Path) -> None:
    """Raises UserError if the language model has no embedding for a token of the template, or too short a context."""
    tokens = [*tokenizer.prefix_tokens, *tokenizer.encode(config.prompt_template)]
    if max(tokens) >= config.llama.vocab_size:
        raise UserError(
            f"the tokenizer of {llm} encodes the prompt template with token {max(tokens)}, but the model has "
            f"vocab_size={config.llama.vocab_size}; the two files do not belong together"
        )
    needed, context = len(tokens) + config.num_audio_tokens, config.llama.max_position_embeddings
    if needed >= context:
        raise UserError(
            f"a prompt with the {config.num_audio_tokens} audio tokens of one window has at least {needed} tokens, but "
            f"the context of {llm} has {context}; use fewer queries, a larger --second-stride or a shorter "
            "--audio-window-seconds"
        )


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a model, by path."""
    return {path: leaf.shape for path, leaf in parameters.model_structure(config).shapes.items()}


def _initialize(config: ModelConfig, paths: frozenset[str]) -> parameters.Params:
    """Returns random initial values of the parameters `paths`. The function is jitted, so XLA drops all others."""
    return jax.jit(lambda: {p: x for p, x in parameters.init_params(config, 0).items() if p in paths})()


def read_checkpoint(path: pathlib.Path) -> tuple[tensors.LazyStateDict, dict[str, Any], dict[str, str]]:
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
