"""The batch format of training, evaluation and the Python API, and functions that build batches with numpy.

All batches have the same format and static shapes: speech, music and sound events, text-only examples, several clips
per example, and packed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int16, Int32

from salmonn_jax.prompts import TEXT_SLOT


class Batch(NamedTuple):
    """A batch of clips, and of rows of tokens. Its arrays are made by `make_batch`.

    A row holds one or more segments, which are numbered from 1; 0 marks padding. Segments do not attend to each other,
    and the positions of each segment start at 0. When rows and clips are split into data shards, the rows of a shard
    use only clips of the same shard, so inserting audio tokens into text needs no communication between devices.

    A clip is given by its samples or, in training with `data.encoder_cache`, by its encoder frames. The other array is
    empty: it has no samples, or no frames.
    """

    pcm: Any  # int16[clips, samples], 16 kHz, zero-padded
    pcm_length: Any  # int32[clips] samples of each clip, without padding
    frames: Any  # float[clips, frames, hidden] frames of all encoders (see `Salmonn.join_frames`), zero-padded
    tokens: Any  # int32[rows, seq]
    positions: Any  # int32[rows, seq] rotary positions
    segments: Any  # int32[rows, seq]
    loss_mask: Any  # bool[rows, seq] answer tokens, which the loss counts
    audio_slot: Any  # int32[rows, seq] clip * audio tokens per clip + index of the audio token here; -1 for text
    source_index: Any  # int32[rows, seq] index of the token's source in the sorted source names; -1 for padding
    transcript: Any  # int32[clips, transcript] tokens of the transcript, -1 for padding; empty without the CTC loss


def make_batch(
    pcm: Int16[np.ndarray, "clips samples"],
    pcm_length: Int32[np.ndarray, " clips"],
    frames: Float[np.ndarray, "clips frames hidden"],
    tokens: Int32[np.ndarray, "rows seq"],
    positions: Int32[np.ndarray, "rows seq"],
    segments: Int32[np.ndarray, "rows seq"],
    loss_mask: Bool[np.ndarray, "rows seq"],
    audio_slot: Int32[np.ndarray, "rows seq"],
    source_index: Int32[np.ndarray, "rows seq"],
    transcript: Int32[np.ndarray, "clips transcript"],
) -> Batch:
    """Returns a batch of these arrays, which are not copied. Everything that makes a batch calls it.

    JAX makes batches of other leaves, such as shardings, by unflattening.
    """
    return Batch(pcm, pcm_length, frames, tokens, positions, segments, loss_mask, audio_slot, source_index, transcript)


class Segment(NamedTuple):
    """One encoded example, which becomes a segment of a row."""

    tokens: list[int]  # prompt and answer
    audio_slots: list[int]  # see `salmonn_jax.prompts.EncodedPrompt`
    prompt_length: int  # number of prompt tokens, which the loss does not count
    clips: tuple[np.ndarray, ...] = ()  # int16[samples] each; a clip longer than the window is split into several
    transcript: Sequence[int] = ()  # tokens of the first clip's transcript
    source_index: int = 0  # see `Batch`
    frame_records: tuple[int, ...] = ()  # with an encoder cache, the record of each clip's frames in it


class FramesShape(NamedTuple):
    """Shape and dtype of the encoder frames of a clip in a batch."""

    frames: int
    hidden: int
    dtype: np.dtype


NO_FRAMES = FramesShape(0, 0, np.dtype(np.float32))  # of a batch whose clips are given by their samples


def collate(
    rows: Sequence[Sequence[Segment]],
    *,
    seq_len: int,
    window_samples: int,
    num_audio_tokens: int,
    num_clips: int | None = None,
) -> Batch:
    """Builds a batch of numpy arrays from rows of segments.

    Args:
      rows: segments of each row.
      seq_len: tokens per row.
      window_samples: samples per clip; no clip may be longer.
      num_audio_tokens: audio tokens per clip.
      num_clips: clip slots of the batch; by default as many as there are clips.
    """
    total_clips = sum(len(segment.clips) for row in rows for segment in row)
    batch = empty_batch(len(rows), seq_len, total_clips if num_clips is None else num_clips, window_samples, 0)
    fill_batch(batch, rows, num_audio_tokens=num_audio_tokens)
    return batch


def empty_batch(
    num_rows: int,
    seq_len: int,
    num_clips: int,
    window_samples: int,
    transcript_len: int,
    frames_shape: FramesShape = NO_FRAMES,
) -> Batch:
    """Returns a batch that contains only padding, as numpy arrays.

    Args:
      num_rows: number of rows.
      seq_len: tokens per row.
      num_clips: number of clip slots.
      window_samples: samples per clip; the batch has no samples if it has frames.
      transcript_len: tokens per transcript.
      frames_shape: encoder frames of a clip.
    """
    tokens, positions, segments = (np.zeros((num_rows, seq_len), np.int32) for _ in range(3))
    return make_batch(
        pcm=np.zeros((num_clips, 0 if frames_shape.frames else window_samples), np.int16),
        pcm_length=np.zeros(num_clips, np.int32),
        frames=np.zeros((num_clips, frames_shape.frames, frames_shape.hidden), frames_shape.dtype),
        tokens=tokens,
        positions=positions,
        segments=segments,
        loss_mask=np.zeros((num_rows, seq_len), bool),
        audio_slot=np.full((num_rows, seq_len), TEXT_SLOT, np.int32),
        source_index=np.full((num_rows, seq_len), -1, np.int32),
        transcript=np.full((num_clips, transcript_len), -1, np.int32),
    )


def batch_slice(batch: Batch, index: int, num_slices: int) -> Batch:
    """Returns one of the equal slices into which all arrays of a batch are split along their first axis.

    Args:
      batch: batch of numpy arrays; the arrays of the slice are views of them.
      index: index of the slice.
      num_slices: number of slices.
    """
    sizes = (len(array) // num_slices for array in batch)
    return make_batch(*(array[index * size : (index + 1) * size] for array, size in zip(batch, sizes, strict=True)))


def fill_batch(
    batch: Batch,
    rows: Sequence[Sequence[Segment]],
    *,
    num_audio_tokens: int,
    clip_offset: int = 0,
    frames: Sequence[np.ndarray] = (),
) -> None:
    """Writes rows of segments and their clips into an empty batch, in order.

    Args:
      batch: batch of padding, modified in place. It must have enough rows, tokens per row, clip slots and
        samples per clip. Transcripts that are too long are cut.
      rows: segments of each row.
      num_audio_tokens: audio tokens per clip.
      clip_offset: index of the first clip of `batch` in the whole batch, if `batch` is a slice.
      frames: float[frames, hidden] encoder frames of each clip, in their order; empty if `batch` has samples.
    """
    clip = 0
    for i, row in enumerate(rows):
        start = 0
        for segment_id, segment in enumerate(row, 1):
            end = start + len(segment.tokens)
            token_slice = slice(start, end)
            batch.tokens[i, token_slice], batch.segments[i, token_slice] = segment.tokens, segment_id
            batch.source_index[i, token_slice] = segment.source_index
            batch.positions[i, token_slice], batch.loss_mask[i, start + segment.prompt_length : end] = (
                np.arange(end - start),
                True,
            )
            slots = np.asarray(segment.audio_slots, np.int32)
            batch.audio_slot[i, token_slice] = np.where(
                slots == TEXT_SLOT, TEXT_SLOT, slots + (clip_offset + clip) * num_audio_tokens
            )
            if segment.clips:
                transcript_ids = segment.transcript[: batch.transcript.shape[1]]
                batch.transcript[clip, : len(transcript_ids)] = transcript_ids
            for pcm in segment.clips:
                batch.pcm_length[clip] = len(pcm)
                if frames:
                    batch.frames[clip, : len(frames[clip])] = frames[clip]
                else:
                    batch.pcm[clip, : len(pcm)] = pcm
                clip += 1
            start = end
