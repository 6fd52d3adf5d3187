"""Makes the predictions of one process: reads clips ahead of the model, answers batches, and appends them to a log.

`launch.evaluate` uses it. Clips are in memory only from the time they are read until their batch is answered.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from salmonn_jax.audio.windows import DecodingTooLong
from salmonn_jax.config import SAMPLE_RATE, GenerationConfig
from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.plan import Item, Rows
from salmonn_jax.evaluation.predictions import Prediction, PredictionLog

READ_AHEAD_BATCHES = 2  # batches whose clips are read while the model answers another
_MAX_READERS = 16


class AnsweringModel(Protocol):
    """The methods of `salmonn_jax.Model` that an evaluation uses."""

    num_compilations: int

    def max_batch_size(self, generation_config: GenerationConfig, num_prompt_tokens: int) -> int:
        """See `salmonn_jax.api.Model.max_batch_size`."""
        ...

    def make_request(
        self, audio: Any, prompt: str, *, max_new_tokens: int, too_long: DecodingTooLong, name: str
    ) -> Any:
        """See `salmonn_jax.api.Model.make_request`."""
        ...

    def answer(
        self, requests: Sequence[Any], generation_config: GenerationConfig, *, batch_size: int | None
    ) -> Sequence[Any]:
        """See `salmonn_jax.api.Model.answer`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Settings of `predict`.

    Attributes:
      generation_config: settings of decoding.
      too_long: what happens to clips longer than the encoder window (see `salmonn_jax.audio.windows`).
      batch_size: rows of every batch; batches with fewer predictions are padded. None lets the model choose it for the
        largest bucket.
      max_failures: number of predictions with an error after which the evaluation stops.
    """

    generation_config: GenerationConfig
    too_long: DecodingTooLong
    batch_size: int | None
    max_failures: int


class BatchTiming(NamedTuple):
    """Duration and size of one batch. `bucket` is the padded length of its prompts, in tokens."""

    bucket: int
    rows: int
    seconds: float
    audio_seconds: float
    new_tokens: int


class _Read(NamedTuple):
    """Row whose clip was read: its request for the model, or an error if it cannot be used."""

    fields: dict[str, Any]
    audio_seconds: float
    request: Any
    error: str


def predict(
    model: AnsweringModel,
    rows: Rows,
    batches: Sequence[Sequence[Item]],
    log: PredictionLog,
    options: PredictOptions,
    *,
    stop_reason: Callable[[], str],
    on_batch: Callable[[list[Prediction], BatchTiming], str] = lambda predictions, timing: "",
) -> str:
    """Makes predictions and appends them to the log, batch by batch.

    A clip that cannot be used, or is too long, becomes a prediction with an error.

    Args:
      model: the model.
      rows: all rows.
      batches: predictions to make (see `own_batches`).
      log: log of this process.
      options: how predictions are made.
      stop_reason: called before every batch; a text ends the loop.
      on_batch: called after every batch with its predictions, which are in the log; a text ends the loop.

    Returns:
      Why the loop ended before the last batch; "" if it did not.
    """
    num_failures, window = 0, READ_AHEAD_BATCHES * options.batch_size
    with (
        concurrent.futures.ThreadPoolExecutor(min(_MAX_READERS, 2 * (os.cpu_count() or 1))) as pool,
        tqdm(total=sum(map(len, batches)), desc="predictions", unit="clip", disable=not batches) as progress,
    ):
        try:
            for batch, reads in _read_ahead(pool, batches, lambda item: _read(model, rows, item, options), window):
                if reason := stop_reason():
                    return reason
                start = time.perf_counter()
                predictions = _answer(model, batch, reads, options)
                log.append(predictions)
                progress.update(len(batch))
                if reason := on_batch(predictions, _timing(batch, predictions, time.perf_counter() - start)):
                    return reason
                num_failures += sum(bool(prediction.error) for prediction in predictions)
                if num_failures > options.max_failures:
                    first = next(prediction for prediction in reversed(predictions) if prediction.error)
                    return (
                        f"{num_failures} predictions failed, more than --max-failures {options.max_failures}; the last "
                        f"is that of {first.id!r}: {first.error}"
                    )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return ""


def _read_ahead(
    pool: concurrent.futures.Executor,
    batches: Sequence[Sequence[Item]],
    read: Callable[[Item], _Read],
    window: int,
) -> Iterator[tuple[Sequence[Item], list[_Read]]]:
    """Yields each batch and what was read for it. While the caller has a batch, up to `window` items are read ahead."""
    waiting: collections.deque[tuple[Sequence[Item], list[concurrent.futures.Future]]] = collections.deque()
    upcoming = iter(batches)
    num_waiting = 0
    while True:
        while num_waiting < window and (batch := next(upcoming, None)) is not None:
            waiting.append((batch, [pool.submit(read, item) for item in batch]))
            num_waiting += len(batch)
        if not waiting:
            return
        batch, futures = waiting.popleft()
        num_waiting -= len(batch)
        yield batch, [future.result() for future in futures]


def _read(model: AnsweringModel, rows: Rows, item: Item, options: PredictOptions) -> _Read:
    """Reads the clip of a prediction and makes its request."""
    fields, audio_seconds = rows.fields(item.index), 0.0
    try:
        audio = None
        if rows.has_audio(item.index):
            pcm = rows.read_audio(item.index)
            audio_seconds = len(pcm) / SAMPLE_RATE
            audio = (pcm if item.condition == "audio" else np.zeros_like(pcm), SAMPLE_RATE)
        request = model.make_request(
            audio,
            fields["prompt"],
            max_new_tokens=options.generation_config.max_new_tokens,
            too_long=options.too_long,
            name=f"the clip of {fields['id']!r} ({fields['source']})",
        )
    except UserError as error:  # AudioError, and a prompt that does not fit into the context of the language model
        reason = getattr(error, "reason", "prompt")
        return _Read(fields, audio_seconds, None, f"{reason}: {' '.join(str(error).split())}")
    return _Read(fields, audio_seconds, request, "")


def _answer(
    model: AnsweringModel, batch: Sequence[Item], reads: Sequence[_Read], options: PredictOptions
) -> list[Prediction]:
    """Answers a batch and returns its predictions, in its order."""
    requests = [read.request for read in reads if not read.error]
    answers = iter(model.answer(requests, options.generation_config, batch_size=options.batch_size) if requests else ())
    predictions = []
    for item, read in zip(batch, reads, strict=True):
        common = read.fields | {
            "key": item.key,
            "condition": item.condition,
            "audio_seconds": read.audio_seconds,
            "too_long": options.too_long,
        }
        answer, error = None if read.error else next(answers), read.error
        if answer is not None and not math.isfinite(answer.score):
            error = f"not finite: the score of the answer is {answer.score}; check weights and dtype of the model"
        if error:
            predictions.append(Prediction(**common, prediction="", finish_reason="error", error=error, windows=[]))
            continue
        predictions.append(
            Prediction(
                **common,
                prediction=answer.text,
                finish_reason=answer.finish_reason,
                num_tokens=answer.num_tokens,
                score=answer.score,
                windows=[[window.start_seconds, window.end_seconds] for window in answer.windows],
            )
        )
    return predictions


def _timing(batch: Sequence[Item], predictions: Sequence[Prediction], seconds: float) -> BatchTiming:
    answered = [prediction for prediction in predictions if not prediction.error]
    return BatchTiming(
        bucket=batch[0].bucket,
        rows=len(answered),
        seconds=seconds,
        audio_seconds=sum(prediction.audio_seconds for prediction in answered),
        new_tokens=sum(prediction.num_tokens for prediction in answered),
    )
