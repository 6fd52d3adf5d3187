"""The wordings in which each task of the original is asked; an example without a prompt of its own gets one of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.examples import BadExample
from data_pipelines.files import read_json
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.prompts import AUDIO_PLACEHOLDER

SPEECH_TAG = f"<Speech>{AUDIO_PLACEHOLDER}</Speech>"

_DEFAULT_FILE = pathlib.Path(__file__).with_name("prompt_templates.json")


@dataclasses.dataclass(frozen=True)
class PromptTemplates:
    """Wordings by task, and where they were read.

    Attributes:
      location: the file.
      tasks: task -> its wordings, with `{}` where the question goes, and with or without the place of the clip.
    """

    location: str
    by_task: Mapping[str, Sequence[str]]

    @classmethod
    def load(cls, location: str | None = None) -> PromptTemplates:
        """Reads a file of wordings: JSON, task -> a wording or a list of them.

        Args:
          location: path or URL of such a file, also `train_prompt.json` or `test_prompt.json` of the original as they
            are; None for ours.

        Raises:
          UserError: it cannot be read, or is no such file.
        """
        location = str(_DEFAULT_FILE) if location is None else location
        return cls(location, _checked(location, read_json(location, "the prompt templates")))

    def render(self, task: str, question: str, index: int, *, has_audio: bool) -> str:
        """The wording number `number` of a task, counted round, as a prompt.

        Args:
          task: which task is asked.
          question: stands in the place of `{}`. Wordings without it do not use it, as in the original.
          number: any number from 0.
          audio: whether there is a clip; without one the prompt has no place for it.

        Raises:
          BadExample: there is no wording for the task, or the wording takes a question and there is none.
        """
        if task not in self.by_task:
            unknown = unknown_name("task", task, self.by_task)
            raise BadExample("wrong line", f"{unknown} (in {self.location}), or give the line a prompt of its own")
        wordings = self.by_task[task]
        wording = wordings[index % len(wordings)]
        if "{}" in wording and not question.strip():
            raise BadExample("wrong line", f"the task {task!r} takes a question, and the line has none")
        if not has_audio:
            wording = wording.replace(SPEECH_TAG, "").strip()
        elif AUDIO_PLACEHOLDER not in wording:
            wording = f"{SPEECH_TAG} {wording}"
        return wording.replace("{}", question)  # not str.format, for a question may hold braces


def _checked(location: str, tasks: Any) -> dict[str, tuple[str, ...]]:
    """The wordings as tuples. Raises UserError if the file holds anything else."""
    if not isinstance(tasks, dict):
        raise UserError(f'{location} holds no wordings; it must be JSON, {{"task": ["wording", ...], ...}}')
    listed = {task: [given] if isinstance(given, str) else given for task, given in tasks.items()}
    for task, wordings in listed.items():
        if not isinstance(wordings, list) or not wordings or not all(isinstance(w, str) and w for w in wordings):
            raise UserError(f"{location}: the wordings of {task!r} must be strings, and at least one")
    if any(AUDIO_PLACEHOLDER in wording for wordings in listed.values() for wording in wordings):
        # A file of the original's form, which names the place of the clip. The original drops what it lacks it from
        # its training prompts without a word; a task of which nothing is left has no wording here either.
        listed = {task: [w for w in wordings if AUDIO_PLACEHOLDER in w] for task, wordings in listed.items()}
    return {task: tuple(wordings) for task, wordings in listed.items() if wordings}
