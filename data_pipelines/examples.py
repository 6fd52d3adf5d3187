"""Examples, which data sources yield, and the exception and the record for examples that cannot be used."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One question about (at most) one clip, with its answer.

    Attributes:
      id: unique within the source; predictions are reported under it.
      audio: int16[samples] PCM at 16 kHz, one channel; None for a text-only example.
      prompt: what the user says, with `<Speech><SpeechHere></Speech>` where the clip stands; "" for one of the
        wordings of its task (see `data_pipelines.transforms.prompt_templates`), drawn anew each time the example is.
      question: goes into the wording where it has `{}`.
      answer: the text to produce.
      task: names the metric that scores the answer (see `salmonn_jax.evaluation.tasks`).
      source: the data set this comes from; the mixture weighs and counts by it.
      transcript: the words spoken in the clip, in the spoken language and in order; "" when nothing is said or
        it is not known. Only the optional CTC losses of training from random weights read it.
    """

    id: str
    audio: np.ndarray | None
    prompt: str
    answer: str
    task: str
    source: str
    transcript: str = ""
    question: str = ""


TEXT_FIELDS = ("id", "answer", "task", "prompt", "question", "transcript")  # of examples, manifest entries and records


class BadExample(Exception):
    """An example that cannot be used. The example is skipped and counted; this error alone does not end a run.

    Attributes:
      reason: short category, by which rejections are counted: "missing", "unreachable", "undecodable", "empty",
        "not finite", "silent", "too long", "does not fit", "wrong line", or "noise" if the recording that augmentation
        mixes in cannot be used.
      detail: what exactly is wrong.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Rejection(NamedTuple):
    """Record of an example that was left out, as it is counted and listed.

    Attributes:
      source: data set of the example.
      example: index of the example in its source during training; its id when a data set is prepared.
      reason: see `BadExample`.
      detail: see `BadExample`.
    """

    source: str
    example: int | str
    reason: str
    detail: str

    @classmethod
    def from_error(cls, source: str, example: int | str, error: BadExample) -> Rejection:
        """Returns the record of an example that raised `error`."""
        return cls(source, example, error.reason, error.detail)
