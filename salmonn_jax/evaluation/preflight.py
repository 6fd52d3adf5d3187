"""Check of the first answers of an evaluation, which stops a model that was put together wrongly."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from salmonn_jax.evaluation.plan import Item
from salmonn_jax.evaluation.predictions import Prediction

NUM_SAMPLES = 16  # answers that are looked at
_MIN_SAMPLES = 4  # fewer answers may be equal by chance
_CAUSES = (
    "likely causes: another version of Vicuna than the adapters were trained with (1.1 in the released models), "
    "adapters that are missing or have another scale (lora_multiplier), or recordings at another rate than their files "
    "say; --no-preflight continues"
)


class Preflight:
    """Looks at the first answers of a process with the condition "audio".

    Args:
      items: predictions that the process makes, in order.
      num_samples: number of answers to look at; 0 for none.
    """

    def __init__(self, items: Iterable[Item], num_samples: int = NUM_SAMPLES):
        with_clip = (item for item in items if item.condition == "audio")
        self._clips = {item.key: item.clip for item in itertools.islice(with_clip, num_samples)}
        self._answers: list[_Answer] = []

    def add(self, predictions: Iterable[Prediction]) -> str:
        """Adds predictions, and returns what is wrong when all answers are there; "" before, or if nothing is."""
        for prediction in predictions:
            clip = self._clips.pop(prediction.key, None)
            if clip is None:
                continue
            if not prediction.error:
                reference = prediction.references[0]
                self._answers.append(_Answer(prediction.prompt, clip, reference, prediction.prediction))
            if not self._clips:
                fault = find_fault(self._answers)
                return f"preflight: the first {len(self._answers)} answers {fault}; {_CAUSES}" if fault else ""
        return ""


class _Answer(NamedTuple):
    prompt: str
    clip: int
    reference: str
    text: str


def find_fault(answers: Sequence[_Answer]) -> str:
    """Returns how answers show that a model does not work: "are all empty", for example; "" if they do not.

    Equal answers are no fault where the references are equal too, and fewer than four answers are not judged.
    """
    if len(answers) < _MIN_SAMPLES:
        return ""
    if not any(answer.text.strip() for answer in answers):
        return "are all empty"
    if _are_equal(answers):
        return f"are all {answers[0].text[:60]!r}"
    by_prompt: dict[str, list[_Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    several = [group for group in by_prompt.values() if len(group) > 1]
    if sum(map(len, several)) >= _MIN_SAMPLES and all(map(_are_equal, several)):
        return "depend on the prompt, but not on the clip"
    return ""


def _are_equal(answers: Sequence[_Answer]) -> bool:
    """Returns whether answers are equal although their references, and their clips or prompts, are not."""
    return (
        len({answer.text for answer in answers}) == 1
        and len({answer.reference for answer in answers}) > 1
        and len({(answer.prompt, answer.clip) for answer in answers}) > 1
    )
