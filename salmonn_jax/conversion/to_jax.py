"""From PyTorch checkpoints to a model directory."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from salmonn_jax import model_directory, weights
from salmonn_jax.config import AudioConfig, LoraConfig, ModelConfig, QFormerConfig, RunConfig
from salmonn_jax.conversion import mapping, sources, tables, tensors, vicuna
from salmonn_jax.conversion.mapping import Parameter
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters

# What the original trains, and so what its checkpoints hold.
TRAINED = RunConfig(name="").trainable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the tensors of a SALMONN checkpoint cannot tell. None: from the checkpoint's `config`, else the original's.

    Attributes:
      heads: of the Q-Former.
      window_seconds, stride_seconds: of its windows.
      lora_alpha: by which, over the rank, the adapters are scaled.
    """

    heads: int | None = None
    window_seconds: float | None = None
    stride_seconds: float | None = None
    lora_alpha: float | None = None


# Field of `Options`: its name in a checkpoint's `config`, and what the original uses.
_TOLD = {
    "heads": ("num_attention_heads", 12),
    "window_seconds": ("second_per_window", 0.333333),
    "stride_seconds": ("second_stride", 0.333333),
    "lora_alpha": ("lora_alpha", 32.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A conversion that fits and has not begun: nothing is read, nothing written."""

    config: ModelConfig
    base: dict[str, Parameter]
    delta: dict[str, Parameter] = dataclasses.field(default_factory=dict)
    drawn: frozenset[str] = frozenset()  # what is to be trained yet, and is newly drawn
    tokenizer: pathlib.Path | None  # where its files lie
    chosen: dict[str, tuple[Any, str]] = dataclasses.field(
        default_factory=dict
    )  # of `Options`: value, where it is from
    ignored: dict[str, str]  # name of a tensor -> why it is not needed

    @property
    def bytes(self) -> int:
        """How much is to be written of what is read."""
        return sum(math.prod(p.shape) * p.dtype.itemsize for part in (self.base, self.delta) for p in part.values())


def plan_salmonn(
    whisper: pathlib.Path,
    beats: pathlib.Path | None,
    llm: pathlib.Path,
    checkpoint: pathlib.Path | None,
    options: Options,
    *,
    own_checkpoint: bool = False,
) -> Plan:
    """Opens the four parts of a SALMONN and checks that they fit together.

    Args:
      whisper, beats, llm: see `salmonn_jax.conversion.sources`; `beats` None: it hears through Whisper alone.
      checkpoint: the original's `.pth`; None for a model that is yet to be trained.
      options: what the checkpoint may not tell.
      own_checkpoint: it was not released by SALMONN's authors, so that its language model may be any.

    Raises:
      UserError: a part that cannot be read, or does not fit.
    """
    hearing, text = sources.read_whisper(whisper), sources.read_llama(llm)
    sound = None if beats is None else sources.read_beats(beats)
    trained, told = ({}, {}) if checkpoint is None else _read_checkpoint(checkpoint)
    if checkpoint is not None:
        width = _shape(trained, "speech_llama_proj.weight", checkpoint)[0]
        vicuna.check(width, checkpoint, text.config, llm, own=own_checkpoint)
        if sound is None and "ln_audio.weight" in trained:
            raise UserError(f"{checkpoint} was trained with BEATs; name its file with --beats")
    chosen = _choose(options, told)
    config = ModelConfig(
        audio=AudioConfig(window_seconds=hearing.window_seconds),
        whisper=hearing.config,
        beats=sound and sound.config,
        qformer=_qformer(trained, chosen, checkpoint),
        llama=text.config,
        lora=_lora(trained, float(chosen["lora_alpha"][0]), told),
        pad_classes=1,
    )
    shapes = _shapes(config)
    ours = trained_paths(shapes)
    base, ignored = {}, {}
    for source in (hearing, sound, text):
        if source is not None:
            base |= source.match({path: shape for path, shape in shapes.items() if path not in ours})
            ignored |= mapping.ignored(source.table, source.tensors)
    plan = Plan(config=config, base=base, tokenizer=pathlib.Path(llm), chosen=chosen, ignored=ignored)
    if checkpoint is None:
        return dataclasses.replace(plan, drawn=frozenset(ours))
    delta = mapping.match(tables.SALMONN, {path: shapes[path] for path in ours}, trained)
    ignored |= mapping.ignored(tables.SALMONN, trained)
    return dataclasses.replace(plan, delta=delta)


def plan_part(kind: str, path: pathlib.Path) -> Plan:
    """Opens one part to be converted on its own.

    Args:
      kind: "whisper", "beats" or "llama".
      path: see `salmonn_jax.conversion.sources`.

    Raises:
      UserError: it cannot be read, or is not what its configuration says.
    """
    source = {"whisper": sources.read_whisper, "beats": sources.read_beats, "llama": sources.read_llama}[kind](path)
    absent = dict.fromkeys({"whisper", "beats", "qformer", "llama"} - {kind})
    # A language model on its own is asked just what it is asked: no template, no adapters.
    config = ModelConfig(**absent, **{kind: source.config}, lora=LoraConfig(targets=()), prompt_template="{}")
    if kind == "whisper":
        config = dataclasses.replace(config, audio=AudioConfig(window_seconds=source.window_seconds))
    return Plan(
        config=config,
        base=source.match(_shapes(config)),
        tokenizer=pathlib.Path(path) if kind == "llama" else None,
        ignored=mapping.ignored(source.table, source.tensors),
    )


def write(plan: Plan, output: pathlib.Path, written: Callable[[int], object] = lambda count: None) -> None:
    """Carries a plan out. `output` is a model directory when its `config.json`, written last, is there.

    Args:
      plan: what to do.
      output: absent, or an empty directory, or what an interrupted conversion left.
      written: called with the number of bytes of each piece that was handed over.

    Raises:
      UserError: `output` holds something else.
      OSError: the disk is full, or fails. What was written is removed.
    """
    if not model_directory.may_be_written(output):
        raise UserError(f"{output} holds something already; name a new directory with --output")
    there = output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        # The delta first: what drawing it takes of memory is given back before the long part.
        if plan.drawn:
            weights.save(output / "delta", _draw(plan.config, plan.drawn))
        elif plan.delta:
            weights.save_streamed(output / "delta", plan.delta, written)
        path = (output / "base").resolve()
        base = model_directory.finish_base(path, weights.save_streamed(path, plan.base, written))
        model_directory.write_description(output, plan.config, base, plan.tokenizer)
    except BaseException:
        for left in output.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not there:
            output.rmdir()
        raise


def trained_paths(paths: Iterable[str]) -> set[str]:
    """Which parameters the original trains, of those a model has."""
    return {path for path in paths if any(re.fullmatch(pattern, path) for pattern in TRAINED)}


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in parameters.structure(config).shapes.items()}


def _draw(config: ModelConfig, paths: frozenset[str]) -> parameters.Params:
    """Newly drawn parameters; the others are not computed."""
    return jax.jit(lambda: {p: x for p, x in parameters.initialize(config, 0).items() if p in paths})()


def _choose(options: Options, told: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Each of the options with where its value is from; `told` is the checkpoint's own configuration."""
    chosen = {}
    for field, (name, default) in _TOLD.items():
        flag = getattr(options, field)
        if flag is not None:
            chosen[field] = (flag, "the command line")
        else:
            chosen[field] = (told[name], "the checkpoint") if name in told else (default, "the original's default")
    return chosen


def _read_checkpoint(path: pathlib.Path) -> tuple[tensors.Tensors, dict[str, Any]]:
    """The `model` of a SALMONN `.pth`, and the `model` section of its configuration, if it holds one."""
    loaded = tensors.load_torch(path)
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("model"), Mapping):
        raise UserError(f"{path} is not a SALMONN checkpoint: it has no `model`")
    config = loaded.get("config")
    told = config.get("model", {}) if isinstance(config, Mapping) else {}
    return tensors.tensors_of(loaded["model"], path, "model"), dict(told)


def _qformer(trained: tensors.Tensors, chosen: dict[str, tuple[Any, str]], path) -> QFormerConfig:
    """The Q-Former whose sizes the tensors show; the original's if there are none."""
    heads, window, stride = (chosen[name][0] for name in ("heads", "window_seconds", "stride_seconds"))
    sizes = {"heads": heads, "window_seconds": float(window), "stride_seconds": float(stride)}
    if not trained:
        return QFormerConfig(**sizes)
    ffn, width = _shape(trained, "speech_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight", path)
    layer = "speech_Qformer.bert.encoder.layer."
    layers = {int(name.removeprefix(layer).split(".")[0]) for name in trained if name.startswith(layer)}
    if width % heads:
        raise UserError(f"the Q-Former of {path} is {width} wide, which {heads} heads do not divide: --qformer-heads")
    queries = _shape(trained, "speech_query_tokens", path)[1]
    return QFormerConfig(**sizes, width=width, ffn=ffn, layers=len(layers), queries=queries)


def _lora(trained: tensors.Tensors, alpha: float, told: dict[str, Any]) -> LoraConfig:
    """The adapters the tensors show; the original's if there are none."""
    if not trained:
        return LoraConfig(alpha=alpha)
    found = {name.split(".")[-4]: tensor.shape[0] for name, tensor in trained.items() if ".lora_A." in name}
    if not found:  # the original's `lora: False`
        return LoraConfig(alpha=alpha, targets=())
    dropout = float(told.get("lora_dropout", LoraConfig.dropout))
    return LoraConfig(rank=max(found.values()), alpha=alpha, dropout=dropout, targets=tuple(sorted(found)))


def _shape(trained: tensors.Tensors, name: str, path: pathlib.Path) -> tuple[int, ...]:
    if name not in trained:
        raise UserError(f"{path} is not a SALMONN checkpoint: it has no {name}")
    return trained[name].shape
