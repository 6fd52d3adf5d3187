"""From PyTorch checkpoints to a model directory."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax

from salmonn_jax import model_directory, weights
from salmonn_jax.config import AudioConfig, LoraConfig, ModelConfig, QFormerConfig, RunConfig
from salmonn_jax.conversion import mapping, tables, tensors, torch_checkpoints, vicuna
from salmonn_jax.conversion.mapping import LazyParam
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_output
from salmonn_jax.models import parameters

# What the original trains, and so what its checkpoints hold.
ORIGINAL_TRAINABLE = RunConfig(name="").trainable


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalmonnOptions:
    """What the tensors of a SALMONN checkpoint cannot tell. None: from the checkpoint's `config`, else the original's.

    Attributes:
      heads: of the Q-Former.
      window_seconds, stride_seconds: of its windows.
      lora_alpha: by which, over the rank, the adapters are scaled.
      prompt_template: with `{}` where a prompt goes.
      audio_tokens: which the language model reads; the original always those of the whole window.
    """

    heads: int | None = None
    window_seconds: float | None = None
    stride_seconds: float | None = None
    lora_alpha: float | None = None
    prompt_template: str | None = None
    audio_tokens: Literal["window", "clip"] = "window"


# Field of `Options`: its name in a checkpoint's `config`, its type, and what the original uses.
_CHECKPOINT_OPTIONS = {
    "heads": ("num_attention_heads", int, 12),
    "window_seconds": ("second_per_window", float, 0.333333),
    "stride_seconds": ("second_stride", float, 0.333333),
    "lora_alpha": ("lora_alpha", float, 32.0),
    "prompt_template": ("prompt_template", str, ModelConfig.prompt_template),
}
# What the original can be configured to be, and is not here.
_REQUIRED_FLAGS = ("use_speech_Qformer", "window_level_Qformer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """A conversion that fits and has not begun: nothing is read, nothing written."""

    config: ModelConfig
    base: dict[str, LazyParam]
    delta: dict[str, LazyParam] = dataclasses.field(default_factory=dict)
    newly_initialized: frozenset[str] = frozenset()  # what is to be trained yet, and is newly drawn
    tokenizer_dir: pathlib.Path | None  # where its files lie
    resolved_options: dict[str, tuple[Any, str]] = dataclasses.field(
        default_factory=dict
    )  # of `Options`: value, where it is from
    ignored: dict[str, str]  # name of a tensor -> why it is not needed

    @property
    def nbytes(self) -> int:
        """How much is to be written of what is read."""
        return sum(math.prod(p.shape) * p.dtype.itemsize for part in (self.base, self.delta) for p in part.values())


def plan_salmonn(
    whisper: pathlib.Path,
    beats: pathlib.Path | None,
    llm: pathlib.Path,
    checkpoint: pathlib.Path | None,
    options: SalmonnOptions,
    *,
    own_checkpoint: bool = False,
) -> ConversionPlan:
    """Opens the four parts of a SALMONN and checks that they fit together.

    Args:
      whisper, beats, llm: see `salmonn_jax.conversion.torch_checkpoints`; `beats` None: it hears through Whisper alone.
      checkpoint: the original's `.pth`; None for a model that is yet to be trained.
      options: what the checkpoint may not tell.
      own_checkpoint: it was not released by SALMONN's authors, so that its language model may be any.

    Raises:
      UserError: a part that cannot be read, or does not fit.
    """
    if checkpoint is not None and options.audio_tokens != "window":
        raise UserError(
            f"the model of {checkpoint} reads all audio tokens; --audio-tokens {options.audio_tokens} is for one that "
            "is yet to be trained, without --checkpoint"
        )
    hearing, text = torch_checkpoints.open_whisper(whisper), torch_checkpoints.open_llama(llm)
    sound = None if beats is None else torch_checkpoints.open_beats(beats)
    trained, told, ignored = ({}, {}, {}) if checkpoint is None else _read_checkpoint(checkpoint)
    if checkpoint is not None:
        width = _tensor_shape(trained, "speech_llama_proj.weight", checkpoint)[0]
        vicuna.check_llm(width, checkpoint, text.config, llm, own_checkpoint=own_checkpoint)
        if sound is None and "ln_audio.weight" in trained:
            raise UserError(f"{checkpoint} was trained with BEATs; name its file with --beats")
    chosen = _resolve_options(options, told, checkpoint)
    values = {name: value for name, (value, _) in chosen.items()}
    config = ModelConfig(
        audio=AudioConfig(window_seconds=hearing.window_seconds, tokens=options.audio_tokens),
        whisper=hearing.config,
        beats=sound and sound.config,
        qformer=_qformer_config(trained, values, hearing.window_seconds, checkpoint),
        llama=text.config,
        lora=_lora_config(trained, values["lora_alpha"], told),
        prompt_template=values["prompt_template"],
        pad_classes=1,
    )
    shapes = _parameter_shapes(config)
    ours = original_trainable_paths(shapes)
    frozen = {path: shape for path, shape in shapes.items() if path not in ours}
    parts = [source for source in (hearing, sound, text) if source is not None]
    pairs = [source.match_args(frozen) for source in parts]
    if checkpoint is not None:
        pairs.append((tables.SALMONN, {path: shapes[path] for path in ours}, trained))
    found = mapping.match_checkpoints(*pairs)
    for table, _, of in pairs:
        ignored |= mapping.ignored_tensors(table, of)
    return ConversionPlan(
        config=config,
        base={path: found[path] for path in frozen},
        delta={path: found[path] for path in ours} if trained else {},
        newly_initialized=frozenset() if trained else frozenset(ours),
        tokenizer_dir=pathlib.Path(llm),
        resolved_options=chosen,
        ignored=ignored,
    )


def plan_component(kind: str, path: pathlib.Path) -> ConversionPlan:
    """Opens one part to be converted on its own.

    Args:
      kind: "whisper", "beats" or "llama".
      path: see `salmonn_jax.conversion.torch_checkpoints`.

    Raises:
      UserError: it cannot be read, or is not what its configuration says.
    """
    source = {
        "whisper": torch_checkpoints.open_whisper,
        "beats": torch_checkpoints.open_beats,
        "llama": torch_checkpoints.open_llama,
    }[kind](path)
    absent = dict.fromkeys({"whisper", "beats", "qformer", "llama"} - {kind})
    # A language model on its own is asked just what it is asked: no template, no adapters.
    config = ModelConfig(**absent, **{kind: source.config}, lora=LoraConfig(target_modules=()), prompt_template="{}")
    if kind == "whisper":
        config = dataclasses.replace(config, audio=AudioConfig(window_seconds=source.window_seconds))
    return ConversionPlan(
        config=config,
        base=mapping.match_checkpoints(source.match_args(_parameter_shapes(config))),
        tokenizer_dir=pathlib.Path(path) if kind == "llama" else None,
        ignored=mapping.ignored_tensors(source.table, source.tensors),
    )


def write_model(
    plan: ConversionPlan, output: pathlib.Path, on_write: Callable[[int], object] = lambda count: None
) -> None:
    """Carries a plan out.

    Args:
      plan: what to do.
      output: absent, or an empty directory; it appears when all is written.
      written: called with the number of bytes of each piece that was handed over.

    Raises:
      UserError: `output` holds something.
      OSError: the disk is full, or fails. Nothing is left.
    """
    with atomic_output(output) as unfinished:
        # The delta first: what drawing it takes of memory is given back before the long part.
        if plan.newly_initialized:
            weights.save(unfinished / "delta", _initialize(plan.config, plan.newly_initialized))
        elif plan.delta:
            weights.save_streamed(unfinished / "delta", plan.delta, on_write)
        path = (unfinished / "base").resolve()
        base = model_directory.write_fingerprint(path, weights.save_streamed(path, plan.base, on_write))
        model_directory.write_config_and_tokenizer(unfinished, plan.config, base, plan.tokenizer_dir)


def original_trainable_paths(paths: Iterable[str]) -> set[str]:
    """Which parameters the original trains, of those a model has."""
    return {path for path in paths if any(re.fullmatch(pattern, path) for pattern in ORIGINAL_TRAINABLE)}


def _parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in parameters.model_structure(config).shapes.items()}


def _initialize(config: ModelConfig, paths: frozenset[str]) -> parameters.Params:
    """Newly drawn parameters; the others are not computed."""
    return jax.jit(lambda: {p: x for p, x in parameters.init_params(config, 0).items() if p in paths})()


def _resolve_options(
    options: SalmonnOptions, checkpoint_config: Mapping[str, Any], path: pathlib.Path | None
) -> dict[str, tuple[Any, str]]:
    """Each of the options with where its value is from; `told` is the checkpoint's own configuration."""
    chosen = {}
    for field, (name, kind, default) in _CHECKPOINT_OPTIONS.items():
        flag = getattr(options, field)
        if flag is not None:
            chosen[field] = (flag, "the command line")
        elif checkpoint_config.get(name) is not None:
            if not isinstance(checkpoint_config[name], kind | int if kind is float else kind):
                raise UserError(
                    f"the configuration in {path} has {name}={checkpoint_config[name]!r}, not {kind.__name__}"
                )
            chosen[field] = (kind(checkpoint_config[name]), "the checkpoint")
        else:
            chosen[field] = (default, "the original's default")
    return chosen


def _read_checkpoint(path: pathlib.Path) -> tuple[tensors.LazyStateDict, dict[str, Any], dict[str, str]]:
    """The `model` of a SALMONN `.pth`; the `model` section of its configuration, if it has one; what is left out."""
    loaded = tensors.load_torch(path)
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("model"), Mapping):
        raise UserError(f"{path} is not a SALMONN checkpoint: it has no `model`")
    config = loaded.get("config")
    told = config.get("model") if isinstance(config, Mapping) else None
    told = dict(told) if isinstance(told, Mapping) else {}
    for name in _REQUIRED_FLAGS:
        if not told.get(name, True):
            raise UserError(f"{path} was trained with {name}=False; only the window-level Q-Former can be converted")
    beside = {name: "a conversion begins training anew" for name in loaded if name not in ("model", "config")}
    return tensors.lazy_state_dict(loaded["model"], path, "model"), told, beside


def _qformer_config(
    trained: tensors.LazyStateDict, values: Mapping[str, Any], audio_window_seconds: float, path: pathlib.Path | None
) -> QFormerConfig:
    """The Q-Former whose sizes the tensors show; the original's if there are none."""
    heads, window, stride = (values[name] for name in ("heads", "window_seconds", "stride_seconds"))
    made = QFormerConfig(num_attention_heads=heads, second_per_window=window, second_stride=stride)
    if trained:
        layer = "speech_Qformer.bert.encoder.layer."
        ffn, width = _tensor_shape(trained, f"{layer}0.intermediate_query.dense.weight", path)
        layers = {name.removeprefix(layer).split(".")[0] for name in trained if name.startswith(layer)}
        queries = _tensor_shape(trained, "speech_query_tokens", path)[1]
        made = dataclasses.replace(
            made,
            hidden_size=width,
            intermediate_size=ffn,
            num_hidden_layers=len(layers),
            num_speech_query_token=queries,
        )
    if heads < 1 or made.hidden_size % heads:
        raise UserError(f"the Q-Former is {made.hidden_size} wide, which {heads} heads do not divide: --qformer-heads")
    if not 1 <= made.window_frames <= round(50 * audio_window_seconds):
        raise UserError(
            f"a window of {window} s does not lie within the {audio_window_seconds:g} s heard: --second-per-window"
        )
    if made.stride_frames < 1:
        raise UserError(f"windows cannot follow each other by {stride} s: --second-stride")
    return made


def _lora_config(trained: tensors.LazyStateDict, alpha: float, checkpoint_config: dict[str, Any]) -> LoraConfig:
    """The adapters the tensors show; the original's if there are none."""
    if not trained:
        return LoraConfig(alpha=alpha)
    found = {name.split(".")[-4]: tensor.shape[0] for name, tensor in trained.items() if ".lora_A." in name}
    if not found:  # the original's `lora: False`
        return LoraConfig(alpha=alpha, target_modules=())
    dropout = float(checkpoint_config.get("lora_dropout", LoraConfig.dropout))
    return LoraConfig(rank=max(found.values()), alpha=alpha, dropout=dropout, target_modules=tuple(sorted(found)))


def _tensor_shape(trained: tensors.LazyStateDict, name: str, path: pathlib.Path) -> tuple[int, ...]:
    if name not in trained:
        raise UserError(f"{path} is not a SALMONN checkpoint: it has no {name}")
    return trained[name].shape
