"""Making predictions: a model answers examples, once each, into a prediction log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from tqdm import tqdm

from salmonn_jax.api import Model
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.evaluation.predictions import Prediction, PredictionLog, prediction_key


class ExampleLike(Protocol):
    """What is asked: the fields of `data_pipelines.examples.Example` that evaluation reads."""

    id: str
    audio: np.ndarray | None
    prompt: str
    answer: str
    task: str
    source: str


def predict(
    model: Model,
    examples: Sequence[ExampleLike],
    log: PredictionLog,
    *,
    split: str,
    condition: str,
    batch_size: int,
    max_new_tokens: int,
    shard: tuple[int, int] = (0, 1),
) -> set[str]:
    """Answers the examples the log does not hold yet, and returns the keys of all of them.

    Args:
      share: (which, of how many) processes this is; each answers its own examples.
      condition: "audio", or "silence" to answer each question with a silent clip of the same length: what can be
        scored without hearing.
      batch_size: questions at a time; the last batch is filled up, so that one shape is compiled.
    """
    decode = {"method": "greedy", "max_new_tokens": max_new_tokens}
    done, keys, open_questions = log.completed_keys(), set(), []
    which, of = shard
    for number, example in enumerate(examples):
        question = {
            "id": example.id,
            "task": example.task,
            "source": example.source,
            "split": split,
            "condition": condition,
            "prompt": example.prompt,
            "reference": example.answer,
        }
        key = prediction_key(
            **question, audio=example.audio, generation_config=decode, weights_fingerprint=model.fingerprint
        )
        keys.add(key)
        if number % of == which and key not in done:
            open_questions.append((example, {"key": key, **question}))
    progress = tqdm(total=len(open_questions), desc=f"{split}, {condition}", unit="clip", disable=not open_questions)
    for part in _batches(open_questions, batch_size):
        filled = [part[i % len(part)][0] for i in range(batch_size)]
        clips = [_audio_input(example, condition) for example in filled]
        answers = model.generate(clips, [e.prompt for e in filled], max_new_tokens=max_new_tokens)
        for (example, question), answer in zip(part, answers, strict=False):
            seconds = 0.0 if example.audio is None else len(example.audio) / SAMPLE_RATE
            log.append(
                Prediction(
                    **question,
                    prediction=answer.text,
                    finish_reason=answer.finish_reason,
                    audio_seconds=seconds,
                )
            )
        progress.update(len(part))
    progress.close()
    return keys


def _audio_input(example: ExampleLike, condition: str) -> tuple[np.ndarray, int] | None:
    if example.audio is None:
        return None
    return example.audio if condition == "audio" else np.zeros_like(example.audio), SAMPLE_RATE


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
