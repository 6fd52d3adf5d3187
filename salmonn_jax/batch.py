"""The one batch layout: speech, music, events, text-only replay, several clips, packed rows. Shapes are static."""

from __future__ import annotations

from typing import Any, NamedTuple


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
