"""Prompts about clips, read and encoded, ready to be decoded. Used by `salmonn_jax.api`."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence

import numpy as np

from salmonn_jax.audio.files import AudioError, AudioSource, Channels, load_audio
from salmonn_jax.audio.windows import DecodingTooLong, apply_too_long, split_windows
from salmonn_jax.batch import Segment
from salmonn_jax.config import SAMPLE_RATE, ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import add_audio_placeholder, encode_prompt
from salmonn_jax.tokenizer import Tokenizer

Audio = AudioSource | None  # see `salmonn_jax.audio.files.load_audio`; None is a prompt without audio


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt about one clip, or without a clip, ready to be decoded.

    Attributes:
      segments: encoded prompts: one, or one per encoder window if the windows are answered one by one.
      windows: start and end in seconds of each encoder window that the model gets; empty without a clip.
    """

    segments: tuple[Segment, ...]
    windows: tuple[tuple[float, float], ...]


def make_request(
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    audio: Audio,
    prompt: str,
    *,
    max_new_tokens: int,
    too_long: DecodingTooLong,
    channels: Channels,
    name: str,
) -> Request:
    """Reads a clip and encodes a prompt about it.

    Args:
      config: configuration of the model.
      tokenizer: tokenizer of the language model; None if the model has none.
      audio: see `salmonn_jax.api.Model.make_request`, as the other arguments and errors.
      prompt: the prompt.
      max_new_tokens: tokens that the answer may have.
      too_long: what happens to a clip that is longer than the window of the encoders.
      channels: which channel is read.
      name: name of the clip, for error messages.
    """
    if config.llama is None or tokenizer is None:
        raise UserError("this model has no language model and cannot generate answers; load a whole SALMONN")
    windows = ()
    if audio is not None:
        windows = read_windows(config, audio, too_long=too_long, channels=channels, name=name)
    groups = [[window] for window in windows] if windows and too_long == "chunk_answers" else [windows]
    segments = tuple(_encode_prompt(config, tokenizer, group, prompt) for group in groups)
    longest, context = max(len(segment.tokens) for segment in segments), config.llama.max_position_embeddings
    if longest + max_new_tokens > context:
        too_few = f"are more than the {context} tokens of the language model's context"
        if len(segments[0].clips) > 1:
            raise AudioError(
                "too long",
                f"{name} has {len(windows)} windows: {longest} tokens and {max_new_tokens} new tokens {too_few}; "
                "choose too_long (--too-long) truncate or chunk_answers",
            )
        raise UserError(
            f"{longest} tokens and {max_new_tokens} new tokens {too_few}; "
            "shorten the prompt, or lower max_new_tokens or shorten the answer"
        )
    return Request(segments, _window_times(windows))


def pair_prompts(audio: Audio | list[Audio], prompt: str | Sequence[str]) -> tuple[list[Audio], list[str]]:
    """Returns lists of clips and prompts of the same length. Raises UserError if the numbers differ or are 0."""
    clips = audio if isinstance(audio, list) else [audio]
    prompts = [prompt] * len(clips) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(clips):
        raise UserError(f"{len(prompts)} prompts for {len(clips)} clips; give one prompt for all clips or one per clip")
    if not clips:
        raise UserError("no clips and no questions; give at least one (audio=None asks without a clip)")
    return clips, prompts


def read_windows(
    config: ModelConfig, audio: AudioSource, *, too_long: DecodingTooLong, channels: Channels, name: str
) -> tuple[np.ndarray, ...]:
    """Reads a clip as encoder windows, int16[samples] each. Raises AudioError if it is too long.

    Args:
      config: configuration of the model.
      audio: the clip.
      too_long: what happens to a clip that is longer than the window.
      channels: which channel is read.
      name: name of the clip, for error messages.
    """
    if config.qformer is None:
        raise UserError("this model has no Q-Former and cannot encode audio; load a whole SALMONN")
    pcm, window_samples = load_audio(audio, channels=channels), config.audio.window_samples
    fix = "choose too_long (--too-long) truncate, chunk or chunk_answers"
    return tuple(split_windows(apply_too_long(pcm, window_samples, too_long, name=name, fix=fix), window_samples))


def clip_name(audio: Audio, index: int) -> str:
    """Returns the path of a clip, or its number."""
    return os.fspath(audio) if isinstance(audio, str | os.PathLike) else f"clip {index + 1}"


def _encode_prompt(config: ModelConfig, tokenizer: Tokenizer, windows: Sequence[np.ndarray], prompt: str) -> Segment:
    """Encodes a prompt about the clip with these windows, or without a clip, as a segment without an answer."""
    counts = [config.num_valid_audio_tokens(len(window)) for window in windows]
    encoded_prompt = encode_prompt(
        tokenizer,
        config.prompt_template,
        add_audio_placeholder(prompt, num_clips=1 if windows else 0),
        valid_audio_token_counts=[counts] if windows else [],
        num_audio_tokens=config.num_audio_tokens,
        add_bos_token=config.add_bos_token,
    )
    return Segment(encoded_prompt.tokens, encoded_prompt.audio_slots, len(encoded_prompt.tokens), tuple(windows))


def _window_times(windows: Sequence[np.ndarray]) -> tuple[tuple[float, float], ...]:
    """Returns start and end in seconds of consecutive windows, int16[samples] each."""
    bounds = [0, *np.cumsum([len(window) for window in windows]).tolist()]
    return tuple((start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in itertools.pairwise(bounds))
