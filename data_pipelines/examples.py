"""Examples, which data sources yield, and the exception and the record for examples that cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt about at most one clip, with its answer.

    Attributes:
      id: identifier, unique within the source. Predictions are stored under it.
      audio: int16[samples] PCM at 16 kHz, one channel; None for a text-only example.
      prompt: text of the user, with `<Speech><SpeechHere></Speech>` at the position of the clip. "" means a random
        prompt template of the task (see `data_pipelines.transforms.prompt_templates`).
      answer: text that the model should generate.
      task: name of the task. It selects the prompt templates and the metric (see `salmonn_jax.evaluation.tasks`).
      source: name of the data set. The mixture has a weight for each source.
      transcript: words spoken in the clip, in the spoken language; "" if there is no speech or the words are unknown.
        Only the optional CTC loss reads it.
      question: text that replaces `{}` in the prompt template.
      references: all correct answers if there are several, `answer` first; () if there is only `answer`. Only
        evaluation reads this field and the following ones.
      metric: generic metric that scores the example; "" for the metrics of the task.
      language: language of the answer, such as "en"; "" if unknown.
      choices: answers from which the model chooses; () for an open question.
      group: properties by which scores are grouped, such as {"speaker": "1089"}.
    """

    id: str
    audio: np.ndarray | None
    prompt: str
    answer: str
    task: str
    source: str
    transcript: str = ""
    question: str = ""
    references: tuple[str, ...] = ()
    metric: str = ""
    language: str = ""
    choices: tuple[str, ...] = ()
    group: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Tasks whose examples have no audio. Entries of all other tasks are rejected if they have none.
TEXT_ONLY_TASKS = ("text",)

# Fields of examples, manifest entries and records that hold a text, and those that hold a list of texts.
TEXT_FIELDS = ("id", "answer", "task", "prompt", "question", "transcript", "metric", "language")
LIST_FIELDS = ("references", "choices")


class BadExample(Exception):
    """An example that cannot be used. The example is skipped and counted; this error alone does not end a run.

    Attributes:
      reason: short category, by which rejections are counted: "missing", "unreachable", "undecodable", "incomplete",
        "empty", "not finite", "out of range", "silent", "too long", "does not fit", "invalid", "noise" if the
        recording that augmentation mixes in cannot be used, or "not in the encoder cache".
      detail: what exactly is wrong.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Rejection(NamedTuple):
    """Record of a rejected example, for the counts and the rejection log.

    Attributes:
      source: name of the source during training; origin of the entries (`PrepareConfig.origin`) during preparation.
      example: index of the example in its source during training; its id during preparation.
      reason: see `BadExample`.
      detail: see `BadExample`.
    """

    source: str
    example: int | str
    reason: str
    detail: str

    @classmethod
    def from_error(cls, source: str, example: int | str, error: BadExample) -> Rejection:
        """Returns the record of an example that raised `error`.

        Args:
          source: name of the source, or origin of the entries.
          example: index or id of the example.
          error: reason and detail of the rejection.
        """
        return cls(source, example, error.reason, error.detail)
