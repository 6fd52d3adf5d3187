"""Prompts to decode, and their division into batches of few shapes. Used by `salmonn_jax.api`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt32

from salmonn_jax.batch import Segment, collate
from salmonn_jax.config import ModelConfig
from salmonn_jax.decoding.decoder import PromptBatch

SHORTEST_BUCKET = 32  # tokens
MAX_BATCH_SIZE = 32  # rows of a batch, for each data shard, if the caller sets no batch size


def bucket_length(num_tokens: int, max_seq_len: int) -> int:
    """Returns the length to which a prompt is padded: 32, 48, 64, 96, 128, 192, ..., at most `max_seq_len`.

    The length depends on the prompt alone, so an answer does not depend on the other prompts, and the number of
    compiled programs is bounded.
    """
    bucket = SHORTEST_BUCKET
    while bucket < num_tokens:
        bucket = bucket * 3 // 2 if bucket & (bucket - 1) == 0 else bucket * 4 // 3
    return min(bucket, max_seq_len)


def prompt_batches(
    segments: Sequence[Segment], config: ModelConfig, *, batch_size: int, max_seq_len: int, seed: int | None = None
) -> Iterator[tuple[list[int], PromptBatch]]:
    """Divides prompts into batches of one shape each: prompts of one bucket, with or without clips.

    Args:
      segments: prompts.
      config: configuration of the model.
      batch_size: rows of every batch, and encoder windows of every batch with clips. A prompt with more windows is
        alone in its batch. Batches with fewer prompts are padded with copies of their rows.
      max_seq_len: maximum number of tokens of a padded prompt. No prompt is longer.
      seed: seed of sampling; None if no random numbers are used.

    Yields:
      The indices of the prompts in the batch, and the batch. The prompts are its first rows, in this order.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, segment in enumerate(segments):
        num_windows = len(segment.clips)
        shape = bucket_length(len(segment.tokens), max_seq_len), -(-num_windows // batch_size) * batch_size
        by_shape.setdefault(shape, []).append(index)
    for (seq_len, num_windows), indices in by_shape.items():
        for group in _groups([len(segments[index].clips) for index in indices], batch_size, num_windows):
            group_indices = [indices[i] for i in group]
            group_segments = [segments[index] for index in group_indices]
            yield group_indices, _prompt_batch(group_segments, config, batch_size, num_windows, seq_len, seed)


def _groups(windows: Sequence[int], max_rows: int, max_windows: int) -> Iterator[list[int]]:
    """Yields the indices of consecutive prompts that have at most `max_rows` rows and `max_windows` windows in all."""
    group: list[int] = []
    for index, count in enumerate(windows):
        if group and (len(group) == max_rows or sum(windows[i] for i in group) + count > max_windows):
            yield group
            group = []
        group.append(index)
    yield group


def _prompt_batch(
    segments: Sequence[Segment], config: ModelConfig, num_rows: int, num_windows: int, seq_len: int, seed: int | None
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
    keys = [np.zeros(2, np.uint32) if seed is None else random_key(segment, seed) for segment in segments]
    return PromptBatch(
        batch.pcm,
        batch.pcm_length,
        batch.tokens[rows],
        batch.audio_slot[rows],
        prompt_length[rows],
        np.stack(keys)[rows],
    )


def random_key(segment: Segment, seed: int) -> UInt32[np.ndarray, " 2"]:
    """Returns the random key of a prompt, a hash of the seed, the prompt and its clips."""
    digest = hashlib.sha256(f"{seed} {segment.tokens} {segment.audio_slots}".encode())
    for clip in segment.clips:
        digest.update(len(clip).to_bytes(8, "little") + clip.astype("<i2").tobytes())
    return np.frombuffer(digest.digest()[:8], "<u4").astype(np.uint32)
