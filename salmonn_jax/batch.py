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
    source: Any  # int32[R] index of the row's source among the sorted names of the mixture, for the counters
    transcript: Any  # int32[A,U] tokens spoken in the clip, -1 for padding; U is 0 unless the CTC loss is used


class Row(NamedTuple):
    """One example, laid out but not yet padded. `slots` are as in `salmonn_jax.prompts.Sequence`."""

    tokens: list[int]
    slots: list[int]
    prompt: int  # how many of the tokens are not to be predicted
    audio: np.ndarray | None  # int16[samples]
    transcript: Sequence[int] = ()
    source: int = 0


def collate(
    rows: Sequence[Row], *, sequence: int, window: int, audio_tokens: int, transcript: int = 0, first_clip: int = 0
) -> Batch:
    """Pads rows to the numpy arrays of a batch, in their order; clips stand in the order of their rows.

    Args:
      sequence: S, at least as long as the longest row.
      window: N; longer clips are cut.
      audio_tokens: of one clip.
      transcript: U; longer transcripts are cut.
      first_clip: clips of the batch before these rows', where they are a part of one.
    """
    heard = [row.audio for row in rows if row.audio is not None]
    shape = (len(rows), sequence)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    slot, mask = np.full(shape, TEXT, np.int32), np.zeros(shape, bool)
    pcm = np.zeros((len(heard), window), np.int16)
    length = np.array([min(len(clip), window) for clip in heard], np.int32)
    spoken = np.full((len(heard), transcript), -1, np.int32)
    clip = 0
    for i, row in enumerate(rows):
        size = len(row.tokens)
        tokens[i, :size], segments[i, :size], mask[i, row.prompt : size] = row.tokens, 1, True
        if row.audio is None:
            continue
        slots = np.asarray(row.slots)
        slot[i, :size] = np.where(slots == TEXT, TEXT, slots + (first_clip + clip) * audio_tokens)
        pcm[clip, : length[clip]] = row.audio[:window]
        words = row.transcript[:transcript]
        spoken[clip, : len(words)] = words
        clip += 1
    positions = np.broadcast_to(np.arange(sequence, dtype=np.int32), shape)
    source = np.array([row.source for row in rows], np.int32)
    return Batch(pcm, length, tokens, positions, segments, mask, slot, source, spoken)
