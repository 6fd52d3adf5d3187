"""Generates the answers of a model to examples and appends them to a prediction log. Used by `launch.evaluate`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from tqdm import tqdm

from salmonn_jax.api import Model
from salmonn_jax.audio.windows import DecodingTooLong
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.evaluation.predictions import Prediction, PredictionLog, prediction_key


class ExampleLike(Protocol):
    """Protocol with the fields of `data_pipelines.examples.Example` that evaluation reads."""

    id: str
    audio: np.ndarray | None
    prompt: str
    answer: str
    task: str
    source: str
    transcript: str
    question: str


def predict(
    model: Model,
    examples: Sequence[ExampleLike],
    log: PredictionLog,
    *,
    split: str,
    condition: str,
    batch_size: int,
    max_new_tokens: int,
    too_long: DecodingTooLong = "error",
    shard: tuple[int, int] = (0, 1),
) -> set[str]:
    """Answers the examples that have no prediction in the log yet, with greedy decoding.

    Args:
      model: the model that answers.
      examples: the examples of one split. Every process passes all of them.
      log: log to which the predictions are appended. Its completed keys are skipped.
      split: name of the split, stored with each prediction.
      condition: "audio" to pass each clip to the model, or "silence" to replace each clip by zeros of the same length.
        The scores with silence show what the model answers correctly from the prompt alone.
      batch_size: examples, and encoder windows, that are computed at a time. Batches are padded, so that few shapes are
        compiled.
      max_new_tokens: maximum number of tokens of an answer.
      too_long: what happens to clips longer than the encoder window (see `salmonn_jax.audio.windows`).
      shard: (process index, number of processes). Process `i` of `n` answers the examples `i`, `i + n`, `i + 2n`, ...

    Returns:
      The keys of all examples, including those that were answered before or that other processes answer.
    """
    settings = {
        "generation_config": {"num_beams": 1, "max_new_tokens": max_new_tokens},
        "too_long": too_long,
        "model": model.fingerprint,
    }
    completed, keys, pending = log.completed_keys(), set(), []
    shard_index, num_shards = shard
    for number, example in enumerate(examples):
        row = {
            "id": example.id,
            "source": example.source,
            "split": split,
            "task": example.task,
            "metric": "",
            "prompt": example.prompt,
            "question": example.question,
            "references": [example.answer],
            "transcript": example.transcript,
            "language": "",
            "choices": [],
            "group": {},
        }
        audio_hash = "" if example.audio is None else hashlib.sha256(example.audio.tobytes()).hexdigest()
        key = prediction_key(row, condition=condition, audio_hash=audio_hash, settings=settings)
        keys.add(key)
        if number % num_shards == shard_index and key not in completed:
            pending.append((example, {"key": key, "condition": condition, **row}))
    progress = tqdm(total=len(pending), desc=f"{split}, {condition}", unit="clip", disable=not pending)
    for batch in _batches(pending, batch_size):
        answers = model.generate(
            [_audio_input(example, condition) for example, _ in batch],
            [example.prompt for example, _ in batch],
            num_beams=1,
            max_new_tokens=max_new_tokens,
            too_long=too_long,
            batch_size=batch_size,
        )
        for (example, prediction_fields), answer in zip(batch, answers, strict=True):
            seconds = 0.0 if example.audio is None else len(example.audio) / SAMPLE_RATE
            log.append(
                Prediction(
                    **prediction_fields,
                    prediction=answer.text,
                    finish_reason=answer.finish_reason,
                    num_tokens=len(answer.token_ids),
                    score=answer.score,
                    audio_seconds=seconds,
                    too_long=too_long,
                    windows=[[window.start_seconds, window.end_seconds] for window in answer.windows],
                )
            )
        progress.update(len(batch))
    progress.close()
    return keys


def check_examples(
    model: Model, examples: Sequence[ExampleLike], *, max_new_tokens: int, too_long: DecodingTooLong
) -> int:
    """Checks that the model can answer all examples with these settings, without computing anything.

    Args:
      model: the model that will answer.
      examples: see `predict`.
      max_new_tokens: see `predict`.
      too_long: see `predict`.

    Returns:
      The number of clips that are longer than the encoder window.

    Raises:
      UserError: a clip is too long, or the context of the language model is too short for a prompt and its answer.
    """
    for example in examples:
        clip = _audio_input(example, "audio")
        name = f"the clip of {example.id!r} ({example.source})"
        model.make_request(clip, example.prompt, max_new_tokens=max_new_tokens, too_long=too_long, name=name)
    window_samples = model.config.audio.window_samples
    return sum(example.audio is not None and len(example.audio) > window_samples for example in examples)


def _audio_input(example: ExampleLike, condition: str) -> tuple[np.ndarray, int] | None:
    """Returns the clip for this condition and its sampling rate, or None for a text-only example."""
    if example.audio is None:
        return None
    return example.audio if condition == "audio" else np.zeros_like(example.audio), SAMPLE_RATE


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    """Yields consecutive slices of up to `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
