"""Prompts to decode, and their division into batches of bounded memory. Used by `salmonn_jax.api`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from salmonn_jax.batch import Segment, collate
from salmonn_jax.config import SAMPLE_RATE, ModelConfig
from salmonn_jax.decoding.greedy import PromptBatch
from salmonn_jax.prompts import TEXT_SLOT

PAD_TO_MULTIPLE_OF = 32  # tokens; padding prompts to few lengths limits the number of compilations
MAX_BATCH_SIZE = 32  # rows of a batch if the caller sets no batch size


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt about one clip, or without a clip, ready to be decoded.

    Attributes:
      segments: encoded prompts: one, or one per encoder window if the windows are answered one by one.
      windows: start and end in seconds of each encoder window that the model gets; empty without a clip.
    """

    segments: tuple[Segment, ...]
    windows: tuple[tuple[float, float], ...]


def window_times(windows: Sequence[np.ndarray]) -> tuple[tuple[float, float], ...]:
    """Returns start and end in seconds of consecutive windows, int16[samples] each."""
    bounds = [0, *np.cumsum([len(window) for window in windows]).tolist()]
    return tuple((start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in itertools.pairwise(bounds))


def prompt_batches(
    segments: Sequence[Segment], config: ModelConfig, *, batch_size: int | None, max_seq_len: int
) -> Iterator[tuple[int, PromptBatch]]:
    """Divides prompts into batches, in order.

    A batch has at most as many rows and encoder windows as the batch size. A prompt with more windows is alone in its
    batch.

    Args:
      segments: prompts.
      config: configuration of the model.
      batch_size: rows of every batch. Batches are padded with copies of their rows, and to the length of a prompt whose
        windows are all full. So all batches whose prompts have at most one window and about the same text have one
        shape, and the shapes of longer prompts are few. None makes one batch of exactly these prompts if they and
        their windows are at most 32; otherwise the batch size is 32.
      max_seq_len: maximum number of tokens of a padded prompt. No prompt is longer.

    Yields:
      The number of prompts in the batch, and the batch. The prompts are its first rows.
    """
    if not segments:
        return
    num_windows = sum(len(segment.clips) for segment in segments)
    if batch_size is None and max(len(segments), num_windows) <= MAX_BATCH_SIZE:
        seq_len = _round_up(max(len(segment.tokens) for segment in segments), PAD_TO_MULTIPLE_OF)
        yield len(segments), _prompt_batch(segments, config, len(segments), num_windows, seq_len)
        return
    batch_size = batch_size or MAX_BATCH_SIZE
    for group in _groups(segments, batch_size):
        num_windows = sum(len(segment.clips) for segment in group)
        longest = max(len(segment.tokens) for segment in group)
        seq_len = _round_up(
            max(_padded_tokens(segment, config.num_audio_tokens) for segment in group), PAD_TO_MULTIPLE_OF
        )
        seq_len = max(longest, min(seq_len, max_seq_len))
        yield len(group), _prompt_batch(group, config, batch_size, _round_up(num_windows, batch_size), seq_len)


def _groups(segments: Sequence[Segment], batch_size: int) -> Iterator[list[Segment]]:
    """Yields consecutive prompts with at most `batch_size` rows and windows in all, or one prompt with more windows."""
    group: list[Segment] = []
    for segment in segments:
        windows = sum(len(other.clips) for other in group) + len(segment.clips)
        if group and (len(group) == batch_size or windows > batch_size):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _padded_tokens(segment: Segment, num_audio_tokens: int) -> int:
    """Returns the tokens of a prompt if all its windows were full and their number a power of two."""
    num_windows = 1 << (len(segment.clips) - 1).bit_length() if segment.clips else 0
    num_text_tokens = sum(slot == TEXT_SLOT for slot in segment.audio_slots)
    return num_text_tokens + num_windows * num_audio_tokens


def _prompt_batch(
    segments: Sequence[Segment], config: ModelConfig, num_rows: int, num_windows: int, seq_len: int
) -> PromptBatch:
    """Builds a batch and pads it to `num_rows` with copies of its rows, which end when the rows end."""
    batch = collate(
        [[segment] for segment in segments],
        seq_len=seq_len,
        window_samples=config.audio.window_samples,
        num_audio_tokens=config.num_audio_tokens,
        num_clips=num_windows,
    )
    rows = np.arange(num_rows) % len(segments)
    prompt_length = np.array([segment.prompt_length for segment in segments], np.int32)
    return PromptBatch(batch.pcm, batch.pcm_length, batch.tokens[rows], batch.audio_slot[rows], prompt_length[rows])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
