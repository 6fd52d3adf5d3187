"""The wordings in which each task of the original is asked; an example without a prompt of its own gets one of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from data_pipelines.sources.manifest_entries import BadExample
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.prompts import PLACEHOLDER

SPEECH = f"<Speech>{PLACEHOLDER}</Speech>"

_OURS = pathlib.Path(__file__).with_name("prompt_templates.json")


@dataclasses.dataclass(frozen=True)
class Wordings:
    """Wordings by task, and where they were read.

    Attributes:
      location: the file.
      tasks: task -> its wordings, with `{}` where the question goes, and with or without the place of the clip.
    """

    location: str
    tasks: Mapping[str, Sequence[str]]

    @classmethod
    def load(cls, location: str | None = None) -> Wordings:
        """Reads a file of wordings: JSON, task -> a wording or a list of them.

        Args:
          location: path or URL of such a file, also `train_prompt.json` or `test_prompt.json` of the original as they
            are; None for ours.

        Raises:
          UserError: it cannot be read, or is no such file.
        """
        location = str(_OURS) if location is None else location
        try:
            with fsspec.open(location, "rb") as file:
                tasks = json.loads(file.read())
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"the wordings {location} cannot be read: {error}") from None
        return cls(location, _checked(location, tasks))

    def choose(self, task: str, question: str, number: int, *, audio: bool) -> str:
        """The wording number `number` of a task, counted round, as a prompt.

        Args:
          task: which task is asked.
          question: stands in the place of `{}`. Wordings without it do not use it, as in the original.
          number: any number from 0.
          audio: whether there is a clip; without one the prompt has no place for it.

        Raises:
          BadExample: there is no wording for the task, or the wording takes a question and there is none.
        """
        if task not in self.tasks:
            unknown = unknown_name("task", task, self.tasks)
            raise BadExample("wrong line", f"{unknown} (in {self.location}), or give the line a prompt of its own")
        wordings = self.tasks[task]
        wording = wordings[number % len(wordings)]
        if "{}" in wording and not question.strip():
            raise BadExample("wrong line", f"the task {task!r} takes a question, and the line has none")
        if not audio:
            wording = wording.replace(SPEECH, "").strip()
        elif PLACEHOLDER not in wording:
            wording = f"{SPEECH} {wording}"
        return wording.replace("{}", question)  # not str.format, for a question may hold braces


def _checked(location: str, tasks: Any) -> dict[str, tuple[str, ...]]:
    """The wordings as tuples. Raises UserError if the file holds anything else."""
    if not isinstance(tasks, dict):
        raise UserError(f'{location} holds no wordings; it must be JSON, {{"task": ["wording", ...], ...}}')
    listed = {task: [given] if isinstance(given, str) else given for task, given in tasks.items()}
    for task, wordings in listed.items():
        if not isinstance(wordings, list) or not wordings or not all(isinstance(w, str) and w for w in wordings):
            raise UserError(f"{location}: the wordings of {task!r} must be strings, and at least one")
    if any(PLACEHOLDER in wording for wordings in listed.values() for wording in wordings):
        # A file of the original's form, which names the place of the clip. The original drops what it lacks it from
        # its training prompts without a word; a task of which nothing is left has no wording here either.
        listed = {task: [w for w in wordings if PLACEHOLDER in w] for task, wordings in listed.items()}
    return {task: tuple(wordings) for task, wordings in listed.items() if wordings}
