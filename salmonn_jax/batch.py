"""The one batch layout: speech, music, events, text-only replay, several clips, packed rows. Shapes are static."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from salmonn_jax.prompts import TEXT_SLOT


class Batch(NamedTuple):
    """A clips of N samples, R rows of S tokens (see `salmonn_jax.models.common` for the letters).

    A row holds one or more segments, numbered from 1; 0 marks padding. Segments neither see each other nor share
    positions. A row's clips lie in the same part of the clip axis as the row in the row axis: when both axes are cut
    into as many parts as there are data shards, part i of the rows uses clips of part i only, so splicing audio into
    text moves nothing between devices.
    """

    pcm: Any  # int16[A,N], 16 kHz, zero-padded
    pcm_length: Any  # int32[A] samples that are the clip's own
    tokens: Any  # int32[R,S]
    positions: Any  # int32[R,S] rotary positions
    segments: Any  # int32[R,S]
    loss_mask: Any  # bool[R,S] tokens that are to be predicted (from the tokens before them)
    audio_slot: Any  # int32[R,S] which audio token stands here: clip * audio tokens per clip + its index; -1 for text
    source_index: Any  # int32[R,S] index of the token's source among the sorted names of the mixture; -1 for padding
    transcript: Any  # int32[A,U] tokens spoken in the clip, -1 for padding; U is 0 unless the CTC loss is used


class Segment(NamedTuple):
    """One example, laid out as it will stand in a row. `slots` are as in `salmonn_jax.prompts.Sequence`."""

    tokens: list[int]
    audio_slots: list[int]
    prompt_length: int  # how many of the tokens are not to be predicted
    clips: tuple[np.ndarray, ...] = ()  # int16[samples] each; a long clip is several
    transcript: Sequence[int] = ()  # of the first clip
    source_index: int = 0


def collate(
    rows: Sequence[Sequence[Segment]],
    *,
    seq_len: int,
    window_samples: int,
    num_audio_tokens: int,
    num_clips: int | None = None,
) -> Batch:
    """Rows of segments as the numpy arrays of a batch, which has `clips` slots, or as many as are needed."""
    heard = sum(len(segment.clips) for row in rows for segment in row)
    batch = empty_batch(len(rows), seq_len, heard if num_clips is None else num_clips, window_samples, 0)
    fill_batch(batch, rows, num_audio_tokens=num_audio_tokens)
    return batch


def empty_batch(num_rows: int, seq_len: int, num_clips: int, window_samples: int, transcript_len: int) -> Batch:
    """A batch of padding: numpy arrays of the sizes R, S, A, N and U."""
    tokens, positions, segments = (np.zeros((num_rows, seq_len), np.int32) for _ in range(3))
    return Batch(
        pcm=np.zeros((num_clips, window_samples), np.int16),
        pcm_length=np.zeros(num_clips, np.int32),
        tokens=tokens,
        positions=positions,
        segments=segments,
        loss_mask=np.zeros((num_rows, seq_len), bool),
        audio_slot=np.full((num_rows, seq_len), TEXT_SLOT, np.int32),
        source_index=np.full((num_rows, seq_len), -1, np.int32),
        transcript=np.full((num_clips, transcript_len), -1, np.int32),
    )


def batch_slice(batch: Batch, index: int, num_slices: int) -> Batch:
    """Views of one of the equal parts that all arrays of a batch are cut into."""
    sizes = (len(array) // num_slices for array in batch)
    return Batch(*(array[index * size : (index + 1) * size] for array, size in zip(batch, sizes, strict=True)))


def fill_batch(batch: Batch, rows: Sequence[Sequence[Segment]], *, num_audio_tokens: int, clip_offset: int = 0) -> None:
    """Writes rows of segments into an empty batch, in their order, and clips in that of their segments.

    Args:
      batch: changed in place; its rows are at least as long as these, and it has slots for all clips. Clips longer than
        its window are cut, and so are transcripts.
      audio_tokens: of one clip.
      first_clip: clips before those of this batch, where it is a part of one.
    """
    clip = 0
    for i, row in enumerate(rows):
        start = 0
        for number, segment in enumerate(row, 1):
            end = start + len(segment.tokens)
            here = slice(start, end)
            batch.tokens[i, here], batch.segments[i, here] = segment.tokens, number
            batch.source_index[i, here] = segment.source_index
            batch.positions[i, here], batch.loss_mask[i, start + segment.prompt_length : end] = (
                np.arange(end - start),
                True,
            )
            slots = np.asarray(segment.audio_slots, np.int32)
            batch.audio_slot[i, here] = np.where(
                slots == TEXT_SLOT, TEXT_SLOT, slots + (clip_offset + clip) * num_audio_tokens
            )
            if segment.clips:
                words = segment.transcript[: batch.transcript.shape[1]]
                batch.transcript[clip, : len(words)] = words
            for pcm in segment.clips:
                length = min(len(pcm), batch.pcm.shape[1])
                batch.pcm[clip, :length], batch.pcm_length[clip] = pcm[:length], length
                clip += 1
            start = end
