"""What a data source yields: one `Example`, the same for speech, music, sound events and text-only replay."""

from __future__ import annotations

import dataclasses

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
