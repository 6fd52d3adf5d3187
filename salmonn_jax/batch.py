"""The one batch layout: speech, music, events, text-only replay, several clips, packed rows. Shapes are static."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from salmonn_jax.prompts import TEXT


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
    source: Any  # int32[R,S] index of the token's source among the sorted names of the mixture; -1 for padding
    transcript: Any  # int32[A,U] tokens spoken in the clip, -1 for padding; U is 0 unless the CTC loss is used


class Segment(NamedTuple):
    """One example, laid out as it will stand in a row. `slots` are as in `salmonn_jax.prompts.Sequence`."""

    tokens: list[int]
    slots: list[int]
    prompt: int  # how many of the tokens are not to be predicted
    clips: tuple[np.ndarray, ...] = ()  # int16[samples] each; a long clip is several
    transcript: Sequence[int] = ()  # of the first clip
    source: int = 0


def collate(
    rows: Sequence[Sequence[Segment]],
    *,
    sequence: int,
    window: int,
    audio_tokens: int,
    clips: int | None = None,
    transcript: int = 0,
    first_clip: int = 0,
) -> Batch:
    """Lays rows of segments out as the numpy arrays of a batch, in their order, and clips in that of their segments.

    Args:
      sequence: S, at least as long as the longest row.
      window: N; longer clips are cut.
      audio_tokens: of one clip.
      clips: A, at least as many as the segments have; slots beyond theirs are silent. None for as many.
      transcript: U; longer transcripts are cut.
      first_clip: clips of the batch before these rows', where they are a part of one.
    """
    heard = [clip for row in rows for segment in row for clip in segment.clips]
    places = len(heard) if clips is None else clips
    shape = (len(rows), sequence)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    slot, source, mask = np.full(shape, TEXT, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, bool)
    pcm, length = np.zeros((places, window), np.int16), np.zeros(places, np.int32)
    spoken = np.full((places, transcript), -1, np.int32)
    for i, clip in enumerate(heard):
        length[i] = min(len(clip), window)
        pcm[i, : length[i]] = clip[:window]
    clip = 0
    for i, row in enumerate(rows):
        start = 0
        for number, segment in enumerate(row, 1):
            end = start + len(segment.tokens)
            here = slice(start, end)
            tokens[i, here], segments[i, here], source[i, here] = segment.tokens, number, segment.source
            positions[i, here], mask[i, start + segment.prompt : end] = np.arange(end - start), True
            slots = np.asarray(segment.slots, np.int32)
            slot[i, here] = np.where(slots == TEXT, TEXT, slots + (first_clip + clip) * audio_tokens)
            if segment.clips and transcript:
                words = segment.transcript[:transcript]
                spoken[clip, : len(words)] = words
            clip += len(segment.clips)
            start = end
    return Batch(pcm, length, tokens, positions, segments, mask, slot, source, spoken)
