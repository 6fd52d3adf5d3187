"""Prompt templates by task. An example without a prompt gets one of its task's templates.

`prompt_templates.json` has our templates for the tasks of the original, `test_prompts.json` the prompts with which the
original is evaluated (its `prompts/test_prompt.json`). The mini-corpus has a file of its own.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.examples import BadExample
from data_pipelines.files import read_json
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.prompts import AUDIO_PLACEHOLDER, SPEECH_TAG, add_audio_placeholder

_DEFAULT_FILE = pathlib.Path(__file__).with_name("prompt_templates.json")
_TEST_FILE = pathlib.Path(__file__).with_name("test_prompts.json")


@dataclasses.dataclass(frozen=True)
class PromptTemplates:
    """Prompt templates by task.

    Attributes:
      location: path or URL of the file, for error messages.
      by_task: task -> its templates. `{}` in a template stands for the question. If no template of the
        file has a position for the clip, the clip is placed at the beginning; otherwise templates without one are
        dropped.
    """

    location: str
    by_task: Mapping[str, Sequence[str]]

    @classmethod
    def load(cls, location: str | None = None) -> PromptTemplates:
        """Loads a JSON file that maps each task to a template or a list of templates.

        Args:
          location: path or URL of the file; None for our templates. `train_prompt.json` and `test_prompt.json` of the
            original are valid files.

        Raises:
          UserError: the file cannot be read or does not have this structure.
        """
        location = str(_DEFAULT_FILE) if location is None else location
        return cls(location, _validate(location, read_json(location, "the prompt templates")))

    @classmethod
    def load_for_evaluation(cls, location: str | None = None) -> PromptTemplates:
        """Loads the prompts of an evaluation, whose first template of each task is used.

        Args:
          location: see `load`; None for the test prompts of the original, and the first of our templates for its other
            tasks.

        Raises:
          UserError: see `load`.
        """
        if location is not None:
            return cls.load(location)
        return cls(str(_TEST_FILE), {**cls.load().by_task, **cls.load(str(_TEST_FILE)).by_task})

    def render(self, task: str, question: str, index: int, *, has_audio: bool) -> str:
        """Returns a prompt made from a template of a task.

        Args:
          task: name of the task.
          question: replaces `{}` in the template. A template without `{}` ignores it, as in the original.
          index: index of the template, modulo the number of templates of the task.
          has_audio: whether the example has a clip. Without a clip the prompt has no position for one.

        Raises:
          BadExample: the task has no templates, the template needs a question and `question` is blank, or `question`
            contains `<SpeechHere>`.
        """
        if AUDIO_PLACEHOLDER in question:
            raise BadExample("invalid", f"question {question!r} must not contain {AUDIO_PLACEHOLDER}")
        if task not in self.by_task:
            unknown = unknown_name("task", task, self.by_task)
            raise BadExample("invalid", f"{unknown} (in {self.location}), or give the example its own prompt")
        templates = self.by_task[task]
        template = templates[index % len(templates)]
        if "{}" in template and not question.strip():
            raise BadExample("invalid", f"the task {task!r} needs a question, but the example has none")
        if has_audio:
            template = add_audio_placeholder(template, num_clips=1)
        else:
            template = template.replace(SPEECH_TAG, "").replace(AUDIO_PLACEHOLDER, "").strip()
        return template.replace("{}", question)  # not str.format, because a question may contain braces


def _validate(location: str, tasks: Any) -> dict[str, tuple[str, ...]]:
    """Returns the templates of each task as a tuple. Raises UserError if `tasks` is anything else."""
    if not isinstance(tasks, dict):
        raise UserError(
            f'{location} is not a file of prompt templates; it must be JSON: {{"task": ["template", ...], ...}}'
        )
    by_task = {task: [value] if isinstance(value, str) else value for task, value in tasks.items()}
    for task, templates in by_task.items():
        if not isinstance(templates, list) or not templates or not all(isinstance(t, str) and t for t in templates):
            raise UserError(f"{location}: the value of {task!r} must be a non-empty string or a list of them")
        if any(template.count(AUDIO_PLACEHOLDER) > 1 for template in templates):
            raise UserError(f"{location}: a template of {task!r} has several {AUDIO_PLACEHOLDER}; keep one")
    if any(AUDIO_PLACEHOLDER in template for templates in by_task.values() for template in templates):
        # Templates of the original contain the position of the clip. Like the original, drop those that do not.
        by_task = {task: [t for t in templates if AUDIO_PLACEHOLDER in t] for task, templates in by_task.items()}
    return {task: tuple(templates) for task, templates in by_task.items() if templates}
