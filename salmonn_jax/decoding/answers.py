"""Answers of the decoder as text: the results of `salmonn_jax.api.Model.generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from salmonn_jax.decoding.decoder import DecodeResult
from salmonn_jax.decoding.requests import Request
from salmonn_jax.tokenizer import Tokenizer


class Window(NamedTuple):
    """An encoder window that the model got."""

    start_seconds: float
    end_seconds: float
    answer: str | None  # answer to this window alone; None if all windows were in one prompt


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generated answer. With `too_long="chunk_answers"`, the answers to all windows of the clip, joined.

    The score is the sum of the log-probabilities of the tokens, divided by their number to the power of the length
    penalty. For a beam search it is `sequences_scores` of transformers, so it contains the repetition penalty, and
    hf4.28 counts one token more for an answer that was cut. Greedy decoding and sampling have the length penalty 1, and
    the log-probabilities are those of the model. Joined answers have the mean of their scores.
    """

    text: str
    token_ids: list[int]  # includes the stop token if finish_reason is "stop"
    num_tokens: int  # number of token_ids
    score: float
    finish_reason: str  # "stop" if the answer ends with a stop token, "length" if it was cut at max_new_tokens
    windows: tuple[Window, ...]  # empty without a clip


def join_answers(
    request: Request, rows: Sequence[DecodeResult], tokenizer: Tokenizer, stop_token_ids: Sequence[int]
) -> Generation:
    """Joins the answers to the segments of a request.

    Args:
      request: the request.
      rows: one row of a result for each segment.
      tokenizer: tokenizer of the language model.
      stop_token_ids: tokens that end an answer.
    """
    token_ids = [row.tokens[: row.length].tolist() for row in rows]
    finished = [ids[-1] in stop_token_ids for ids in token_ids]
    # A stop token need not be special for the tokenizer, so it is removed here.
    texts = [tokenizer.decode(ids[:-1] if stops else ids) for ids, stops in zip(token_ids, finished, strict=True)]
    one_by_one = len(rows) == len(request.windows) > 1
    return Generation(
        text=" ".join(text for text in texts if text) if one_by_one else texts[0],
        token_ids=[token for ids in token_ids for token in ids],
        num_tokens=sum(len(ids) for ids in token_ids),
        score=float(np.mean([row.score for row in rows])),
        finish_reason="stop" if all(finished) else "length",
        windows=tuple(
            Window(start, end, texts[i] if one_by_one else None) for i, (start, end) in enumerate(request.windows)
        ),
    )
