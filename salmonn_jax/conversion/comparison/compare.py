"""Layer-by-layer comparison of a converted model with its PyTorch checkpoints, used by `launch.convert compare`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from salmonn_jax import api, prompts
from salmonn_jax.audio import features
from salmonn_jax.audio.files import AudioSource, Channels, load_audio
from salmonn_jax.audio.windows import apply_too_long
from salmonn_jax.batch import Segment, collate
from salmonn_jax.config import ModelConfig
from salmonn_jax.conversion import mapping, tables, to_jax, torch_checkpoints
from salmonn_jax.conversion.comparison import torch_reference
from salmonn_jax.conversion.comparison.torch_reference import Activations
from salmonn_jax.errors import UserError
from salmonn_jax.models.common import record_hidden_states
from salmonn_jax.models.llama import causal_mask
from salmonn_jax.models.salmonn import Salmonn


@dataclasses.dataclass(frozen=True)
class LayerDifference:
    """Difference between the JAX and the PyTorch activations of one layer."""

    layer: str
    relative_error: float  # L2 norm of the difference / L2 norm of the PyTorch activations
    max_abs_error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPaths:
    """Checkpoints from which the model was converted. Layers of checkpoints that are None are not compared."""

    whisper: pathlib.Path | None = None
    beats: pathlib.Path | None = None
    llm: pathlib.Path | None = None
    checkpoint: pathlib.Path | None = None


def compare(
    model_dir: pathlib.Path,
    paths: CheckpointPaths,
    clip: AudioSource,
    prompt: str,
    *,
    too_long: Literal["error", "truncate"] = "error",
    channels: Channels = "first",
) -> Iterator[LayerDifference]:
    """Yields the float32 differences of all layers, in the order of computation.

    Args:
      model_dir: directory of the converted model.
      paths: checkpoints to compare with. With `paths.checkpoint`, the prompt includes the clip and the language model
        has its adapters. Otherwise the prompt is text only, without adapters on both sides.
      clip: audio, as `salmonn_jax.audio.files.load_audio` takes it.
      prompt: prompt for the language model.
      too_long: "error" or "truncate", for a clip that is longer than the window of the model.
      channels: see `load_audio`.

    Raises:
      UserError: a file cannot be read, a package is missing, the model lacks a component of `paths`, or a checkpoint
        does not have the tensors of the model.
    """
    loaded = api.load(model_dir, dtype="float32")
    config = loaded.config
    if not (paths.whisper or paths.beats or paths.llm):
        raise UserError(f"give a checkpoint that {model_dir} was converted from: --whisper, --beats or --llm")
    for name, component in (("whisper", config.whisper), ("beats", config.beats), ("llm", config.llama)):
        if getattr(paths, name) is not None and component is None:
            raise UserError(f"{model_dir} has no component from --{name}; omit this option")
    if paths.checkpoint and not (paths.whisper and paths.llm and (paths.beats or config.beats is None)):
        raise UserError("--checkpoint needs the other checkpoints of the model: give --whisper, --beats and --llm too")
    _check_tensors(model_dir, paths, config)
    pcm = apply_too_long(
        load_audio(clip, channels=channels),
        config.audio.window_samples,
        too_long,
        name="the clip",
        fix="choose --too-long truncate",
    )
    pcm = np.pad(pcm, (0, max(0, config.audio.minimum_samples - len(pcm))))
    clip_lengths = [len(pcm)] if paths.checkpoint else []
    encoded_prompt = _encode_prompt(loaded, prompt, clip_lengths) if paths.llm else None
    expected = _torch_activations(paths, config, pcm, encoded_prompt)
    with jax.default_matmul_precision("highest"):
        actual = _jax_activations(loaded.module, pcm, encoded_prompt, with_audio=paths.checkpoint is not None)
    for layer, value in expected.items():
        yield _difference(layer, actual.get(layer), value)


def _check_tensors(model_dir: pathlib.Path, paths: CheckpointPaths, config: ModelConfig) -> None:
    """Raises UserError if a checkpoint is of another kind, or its tensors are not those of the model."""
    shapes = to_jax.parameter_shapes(config)
    trained = to_jax.original_trainable_paths(shapes)
    frozen = {path: shape for path, shape in shapes.items() if path not in trained}
    match_args = []
    if paths.whisper:
        whisper = torch_checkpoints.open_whisper(paths.whisper)
        if config.audio.window_seconds < whisper.window_seconds:
            whisper = to_jax.cut_positions(whisper, config.audio.num_frames)
        match_args.append(whisper.match_args(frozen))
    if paths.beats:
        match_args.append(torch_checkpoints.open_beats(paths.beats).match_args(frozen))
    if paths.llm:
        match_args.append(torch_checkpoints.open_llama(paths.llm).match_args(frozen))
    if paths.checkpoint:
        state_dict, _, _ = to_jax.read_checkpoint(paths.checkpoint)
        match_args.append((tables.SALMONN, {path: shapes[path] for path in trained}, state_dict))
    try:
        mapping.match_checkpoints(*match_args)
    except UserError as error:
        raise UserError(f"{model_dir} was not converted from these checkpoints: {error}") from None


def _difference(layer: str, actual: np.ndarray | None, expected: np.ndarray) -> LayerDifference:
    """Compares the JAX and PyTorch activations of a layer.

    JAX activations are padded to the window, so they may be longer. The difference is infinite if they are missing,
    shorter, or of another rank.
    """
    if actual is None or actual.ndim != expected.ndim or any(np.less(actual.shape, expected.shape)):
        return LayerDifference(layer, float("inf"), float("inf"))
    error = actual[tuple(slice(n) for n in expected.shape)] - expected
    relative_error = float(np.linalg.norm(error) / np.linalg.norm(expected))
    return LayerDifference(layer, relative_error, float(np.abs(error).max()))


def _encode_prompt(model: api.Model, prompt: str, clip_lengths: Sequence[int]) -> prompts.EncodedPrompt:
    """Tokenizes the prompt with placeholders for clips of `clip_lengths` samples."""
    prompt = prompts.add_audio_placeholder(prompt, num_clips=len(clip_lengths))
    return prompts.encode_prompt(
        model.tokenizer,
        model.config.prompt_template,
        prompt,
        valid_audio_token_counts=[[model.config.num_valid_audio_tokens(samples)] for samples in clip_lengths],
        num_audio_tokens=model.config.num_audio_tokens,
        add_bos_token=model.config.add_bos_token,
    )


def _torch_activations(
    paths: CheckpointPaths, config, pcm: np.ndarray, encoded_prompt: prompts.EncodedPrompt | None
) -> Activations:
    """Returns the PyTorch activations by layer. Only one PyTorch model is in memory at a time."""
    activations: Activations = {}
    if paths.whisper:
        activations |= torch_reference.whisper_activations(paths.whisper, pcm, config.audio.num_frames)
    if paths.beats:
        activations |= torch_reference.beats_activations(paths.beats, pcm)
    if paths.checkpoint:
        encoder_outputs = activations["whisper output"], activations.get("beats output")
        activations |= torch_reference.qformer_activations(paths.checkpoint, config, *encoder_outputs)
    if paths.llm:
        tokens, audio_slots = (np.asarray(x) for x in encoded_prompt)
        activations |= torch_reference.llama_activations(
            paths.llm, tokens, audio_slots, activations.get("audio tokens"), paths.checkpoint, config
        )
    return activations


def _jax_activations(
    model: Salmonn, pcm: np.ndarray, encoded_prompt: prompts.EncodedPrompt | None, *, with_audio: bool
) -> Activations:
    """Returns the JAX activations by layer, of a clip padded to the window."""
    config = model.config
    tokens, audio_slots = ([], []) if encoded_prompt is None else encoded_prompt
    segment = Segment(list(tokens), list(audio_slots), 0, (pcm,))
    batch = collate(
        [[segment]],
        seq_len=len(tokens),
        window_samples=config.audio.window_samples,
        num_audio_tokens=max(config.num_audio_tokens, 1),
    )
    batched = jax.device_get(jax.jit(_compute_activations, static_argnums=2)(model, batch, with_audio))
    activations: Activations = {}
    for name, value in batched.items():
        value = value.astype(np.float32)
        if name in ("whisper", "beats", "qformer", "llama"):
            activations |= {f"{name} layer {i}": layer[0] for i, layer in enumerate(value)}
        else:
            activations[name] = value[0]
    return activations


def _compute_activations(model: Salmonn, batch, with_audio: bool) -> dict[str, jax.Array]:
    """Returns all activations of the model with their batch axis. Those of stacked layers are one array per stack."""
    config, activations = model.config, {}
    with record_hidden_states() as hidden_states:
        encoder_outputs = model.run_encoders(batch.pcm, batch.pcm_length)
        if config.whisper:
            log_mel = features.log_mel_spectrogram(batch.pcm, config.whisper.num_mel_bins)
            activations["whisper features"] = log_mel.swapaxes(1, 2)
            activations["whisper output"] = encoder_outputs["whisper"].frames
        if config.beats:
            activations["beats features"] = features.fbank(batch.pcm, config.beats.num_mel_bins)
            activations["beats output"] = encoder_outputs["beats"].frames
        if with_audio:
            activations["encoder frames"] = model.concat_encoder_frames(encoder_outputs)
            activations["audio tokens"] = model.compute_audio_tokens(encoder_outputs)
        if config.llama and batch.tokens.shape[1]:
            audio_tokens = activations.get("audio tokens", jnp.zeros((0, 0, config.llama.hidden_size)))
            x = model.merge_audio_tokens(batch.tokens, batch.audio_slot, audio_tokens)
            scale = config.lora.scale if with_audio else None
            hidden = model.llama(x, batch.positions, causal_mask(batch.segments), lora_scale=scale)
            activations["logits"] = model.llama.logits(hidden)
    return activations | hidden_states
