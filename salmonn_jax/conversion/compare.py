"""A converted model beside the files it came from, on a real clip, layer by layer."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from salmonn_jax import api, audio, prompts
from salmonn_jax.audio_files import Source, load_audio
from salmonn_jax.batch import Segment, collate
from salmonn_jax.conversion import torch_side
from salmonn_jax.conversion.torch_side import Stages
from salmonn_jax.errors import UserError
from salmonn_jax.models.common import record_layers
from salmonn_jax.models.llama import causal_mask
from salmonn_jax.models.salmonn import Salmonn


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one stage of ours lies from theirs."""

    stage: str
    relative: float  # norm of the difference over the norm of theirs
    largest: float  # absolute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """What the model was converted from. Stages whose file is not named are not compared."""

    whisper: pathlib.Path | None = None
    beats: pathlib.Path | None = None
    llm: pathlib.Path | None = None
    checkpoint: pathlib.Path | None = None


def compare(model: pathlib.Path, files: Files, clip: Source, prompt: str) -> Iterator[Difference]:
    """Yields the differences of all stages, in the order of computation, in float32.

    Args:
      model: model directory.
      files: see `Files`. With `checkpoint`, the language model hears the clip and has its adapters; without it, both
        sides answer `prompt` unheard and without adapters.
      clip: see `salmonn_jax.audio_files.load_audio`.
      prompt: the question.

    Raises:
      UserError: something cannot be read, a package is missing, or a file of a part that the model has not.
    """
    loaded = api.load(model, dtype="float32")
    config = loaded.config
    if not (files.whisper or files.beats or files.llm):
        raise UserError(f"name what {model} was converted from: --whisper, --beats, --llm, --checkpoint")
    for name, part in (("whisper", config.whisper), ("beats", config.beats), ("llm", config.llama)):
        if getattr(files, name) is not None and part is None:
            raise UserError(f"{model} has no part that came from --{name}")
    if files.checkpoint and not (files.whisper and files.llm and (files.beats or config.beats is None)):
        raise UserError("--checkpoint is compared with all the rest: name --whisper, --beats and --llm too")
    pcm = load_audio(clip)[: config.audio.window_samples]
    pcm = np.pad(pcm, (0, max(0, config.audio.minimum_samples - len(pcm))))
    question = _question(loaded, prompt, clips=[len(pcm)] if files.checkpoint else []) if files.llm else None
    theirs = _theirs(files, config, pcm, question)
    with jax.default_matmul_precision("highest"):
        ours = _ours(loaded.module, pcm, question, heard=files.checkpoint is not None)
    for stage, their in theirs.items():
        yield _difference(stage, ours.get(stage), their)


def _difference(stage: str, our: np.ndarray | None, their: np.ndarray) -> Difference:
    """Ours may be padded to the window; another rank, or too little of it, is as different as can be."""
    if our is None or our.ndim != their.ndim or any(n < m for n, m in zip(our.shape, their.shape, strict=True)):
        return Difference(stage, float("inf"), float("inf"))
    error = our[tuple(slice(n) for n in their.shape)] - their
    return Difference(stage, float(np.linalg.norm(error) / np.linalg.norm(their)), float(np.abs(error).max()))


def _question(model: api.Model, prompt: str, clips: Sequence[int]) -> prompts.Sequence:
    """`clips` are the samples of each."""
    prompt = api.PREFIX + prompt if clips and prompts.PLACEHOLDER not in prompt else prompt
    return prompts.encode_prompt(
        model.tokenizer,
        model.config.prompt_template,
        prompt,
        clips=[[model.config.audio_tokens_of(samples)] for samples in clips],
        audio_tokens=model.config.audio_tokens,
    )


def _theirs(files: Files, config, pcm: np.ndarray, question: prompts.Sequence | None) -> Stages:
    """One model of theirs in memory at a time."""
    stages: Stages = {}
    if files.whisper:
        stages |= torch_side.whisper_stages(files.whisper, pcm)
    if files.beats:
        stages |= torch_side.beats_stages(files.beats, pcm)
    if files.checkpoint:
        heard = stages["whisper output"], stages.get("beats output")
        stages |= torch_side.audio_stages(files.checkpoint, config, *heard)
    if files.llm:
        tokens, slots = (np.asarray(x) for x in question)
        audio_tokens = stages.get("audio tokens")
        stages |= torch_side.llama_stages(files.llm, tokens, slots, audio_tokens, files.checkpoint, config)
    return stages


def _ours(model: Salmonn, pcm: np.ndarray, question: prompts.Sequence | None, *, heard: bool) -> Stages:
    """The same stages of ours, of a clip padded to the window."""
    config = model.config
    tokens, slots = ([], []) if question is None else question
    segment = Segment(list(tokens), list(slots), 0, (pcm,))
    batch = collate(
        [[segment]], sequence=len(tokens), window=config.audio.window_samples, audio_tokens=max(config.audio_tokens, 1)
    )
    stages = jax.device_get(jax.jit(_stages, static_argnums=2)(model, batch, heard))
    named: Stages = {}
    for name, value in stages.items():
        value = value.astype(np.float32)
        if name in ("whisper", "beats", "qformer", "llama"):
            named |= {f"{name} layer {i}": layer[0] for i, layer in enumerate(value)}
        else:
            named[name] = value[0]
    return named


def _stages(model: Salmonn, batch, heard: bool) -> dict[str, jax.Array]:
    """All that the model computes on the way; stacked layers whole, everything with the batch axis."""
    config, found = model.config, {}
    with record_layers() as layers:
        frames = model.encode_frames(batch.pcm, batch.pcm_length)
        if config.whisper:
            found["whisper features"] = audio.log_mel(batch.pcm, config.whisper.num_mel_bins).swapaxes(1, 2)
            found["whisper output"] = frames.speech
        if config.beats:
            found["beats features"] = audio.fbank(batch.pcm, config.beats.num_mel_bins)
            found["beats output"] = frames.sound
        if heard:
            found["encoder frames"] = model.encoder_frames(frames)
            found["audio tokens"] = model.audio_tokens(frames)
        if config.llama and batch.tokens.shape[1]:
            audio_tokens = found.get("audio tokens", jnp.zeros((0, 0, config.llama.hidden_size)))
            x = model.splice(batch.tokens, batch.audio_slot, audio_tokens)
            scale = config.lora.scale if heard else None
            hidden, _ = model.llama(x, batch.positions, causal_mask(batch.segments), lora_scale=scale)
            found["logits"] = model.llama.logits(hidden)
    return found | layers
