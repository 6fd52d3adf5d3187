"""A converted model beside the files it came from, on a real clip, layer by layer."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from salmonn_jax import api, audio, prompts
from salmonn_jax.audio_files import AudioSource, load_audio
from salmonn_jax.batch import Segment, collate
from salmonn_jax.conversion import torch_reference
from salmonn_jax.conversion.torch_reference import Activations
from salmonn_jax.errors import UserError
from salmonn_jax.models.common import record_hidden_states
from salmonn_jax.models.llama import causal_mask
from salmonn_jax.models.salmonn import Salmonn


@dataclasses.dataclass(frozen=True)
class LayerDifference:
    """How far one stage of ours lies from theirs."""

    layer: str
    relative_error: float  # norm of the difference over the norm of theirs
    max_abs_error: float  # absolute


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPaths:
    """What the model was converted from. Stages whose file is not named are not compared."""

    whisper: pathlib.Path | None = None
    beats: pathlib.Path | None = None
    llm: pathlib.Path | None = None
    checkpoint: pathlib.Path | None = None


def compare(
    model_dir: pathlib.Path, paths: CheckpointPaths, clip: AudioSource, prompt: str
) -> Iterator[LayerDifference]:
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
    loaded = api.load(model_dir, dtype="float32")
    config = loaded.config
    if not (paths.whisper or paths.beats or paths.llm):
        raise UserError(f"name what {model_dir} was converted from: --whisper, --beats, --llm, --checkpoint")
    for name, part in (("whisper", config.whisper), ("beats", config.beats), ("llm", config.llama)):
        if getattr(paths, name) is not None and part is None:
            raise UserError(f"{model_dir} has no part that came from --{name}")
    if paths.checkpoint and not (paths.whisper and paths.llm and (paths.beats or config.beats is None)):
        raise UserError("--checkpoint is compared with all the rest: name --whisper, --beats and --llm too")
    pcm = load_audio(clip)[: config.audio.window_samples]
    pcm = np.pad(pcm, (0, max(0, config.audio.minimum_samples - len(pcm))))
    question = (
        _encode_prompt(loaded, prompt, clip_lengths=[len(pcm)] if paths.checkpoint else []) if paths.llm else None
    )
    theirs = _torch_activations(paths, config, pcm, question)
    with jax.default_matmul_precision("highest"):
        ours = _jax_activations(loaded.module, pcm, question, with_audio=paths.checkpoint is not None)
    for stage, their in theirs.items():
        yield _difference(stage, ours.get(stage), their)


def _difference(layer: str, our: np.ndarray | None, their: np.ndarray) -> LayerDifference:
    """Ours may be padded to the window; another rank, or too little of it, is as different as can be."""
    if our is None or our.ndim != their.ndim or any(n < m for n, m in zip(our.shape, their.shape, strict=True)):
        return LayerDifference(layer, float("inf"), float("inf"))
    error = our[tuple(slice(n) for n in their.shape)] - their
    return LayerDifference(layer, float(np.linalg.norm(error) / np.linalg.norm(their)), float(np.abs(error).max()))


def _encode_prompt(model: api.Model, prompt: str, clip_lengths: Sequence[int]) -> prompts.EncodedPrompt:
    """`clips` are the samples of each."""
    prompt = api.AUDIO_PROMPT_PREFIX + prompt if clip_lengths and prompts.AUDIO_PLACEHOLDER not in prompt else prompt
    return prompts.encode_prompt(
        model.tokenizer,
        model.config.prompt_template,
        prompt,
        valid_audio_tokens=[[model.config.num_valid_audio_tokens(samples)] for samples in clip_lengths],
        num_audio_tokens=model.config.num_audio_tokens,
    )


def _torch_activations(
    paths: CheckpointPaths, config, pcm: np.ndarray, encoded_prompt: prompts.EncodedPrompt | None
) -> Activations:
    """One model of theirs in memory at a time."""
    stages: Activations = {}
    if paths.whisper:
        stages |= torch_reference.whisper_activations(paths.whisper, pcm)
    if paths.beats:
        stages |= torch_reference.beats_activations(paths.beats, pcm)
    if paths.checkpoint:
        heard = stages["whisper output"], stages.get("beats output")
        stages |= torch_reference.qformer_activations(paths.checkpoint, config, *heard)
    if paths.llm:
        tokens, slots = (np.asarray(x) for x in encoded_prompt)
        audio_tokens = stages.get("audio tokens")
        stages |= torch_reference.llama_activations(paths.llm, tokens, slots, audio_tokens, paths.checkpoint, config)
    return stages


def _jax_activations(
    model: Salmonn, pcm: np.ndarray, encoded_prompt: prompts.EncodedPrompt | None, *, with_audio: bool
) -> Activations:
    """The same stages of ours, of a clip padded to the window."""
    config = model.config
    tokens, slots = ([], []) if encoded_prompt is None else encoded_prompt
    segment = Segment(list(tokens), list(slots), 0, (pcm,))
    batch = collate(
        [[segment]],
        seq_len=len(tokens),
        window_samples=config.audio.window_samples,
        num_audio_tokens=max(config.num_audio_tokens, 1),
    )
    stages = jax.device_get(jax.jit(_compute_activations, static_argnums=2)(model, batch, with_audio))
    named: Activations = {}
    for name, value in stages.items():
        value = value.astype(np.float32)
        if name in ("whisper", "beats", "qformer", "llama"):
            named |= {f"{name} layer {i}": layer[0] for i, layer in enumerate(value)}
        else:
            named[name] = value[0]
    return named


def _compute_activations(model: Salmonn, batch, with_audio: bool) -> dict[str, jax.Array]:
    """All that the model computes on the way; stacked layers whole, everything with the batch axis."""
    config, found = model.config, {}
    with record_hidden_states() as layers:
        frames = model.run_encoders(batch.pcm, batch.pcm_length)
        if config.whisper:
            found["whisper features"] = audio.log_mel_spectrogram(batch.pcm, config.whisper.num_mel_bins).swapaxes(1, 2)
            found["whisper output"] = frames.whisper
        if config.beats:
            found["beats features"] = audio.fbank(batch.pcm, config.beats.num_mel_bins)
            found["beats output"] = frames.beats
        if with_audio:
            found["encoder frames"] = model.concat_encoder_frames(frames)
            found["audio tokens"] = model.compute_audio_tokens(frames)
        if config.llama and batch.tokens.shape[1]:
            audio_tokens = found.get("audio tokens", jnp.zeros((0, 0, config.llama.hidden_size)))
            x = model.merge_audio_tokens(batch.tokens, batch.audio_slot, audio_tokens)
            scale = config.lora.scale if with_audio else None
            hidden, _ = model.llama(x, batch.positions, causal_mask(batch.segments), lora_scale=scale)
            found["logits"] = model.llama.logits(hidden)
    return found | layers
