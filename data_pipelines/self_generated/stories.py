"""Rows that ask for stories about the clips of a data set, and for the transcripts of these clips."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.evaluation.rows import EvaluationRows
from data_pipelines.examples import Example
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.errors import AudioError, UserError

STORY_TASK = "audio_story_telling"
TRANSCRIPTION_TASK = "asr"
PROMPT_FILE = pathlib.Path(__file__).with_name("story_prompts.json")
# Tasks whose answer is the transcript of the clip.
TRANSCRIPT_TASKS = ("asr", "asr_zh", "asr_de", "lyrics_recognition", "numbers", "transcribe")

Rewrite = Callable[[Example, bool], Example]


def load_story_prompts(location: str | None) -> Sequence[str]:
    """Returns the prompts that ask for a story.

    Args:
      location: path or URL of a file of prompt templates with the task `STORY_TASK`; None for ours.

    Raises:
      UserError: the file cannot be read, or has no such prompt, or one with a question.
    """
    location = str(PROMPT_FILE) if location is None else location
    prompts = PromptTemplates.load(location).by_task.get(STORY_TASK, ())
    if not prompts or any("{}" in prompt for prompt in prompts):
        raise UserError(f'{location} must have prompts without {{}} for the task "{STORY_TASK}"')
    return prompts


def ask_for_story(prompts: Sequence[str]) -> Rewrite:
    """Returns a function that replaces the question of an example by one of the prompts, which its id chooses."""

    def rewrite(example: Example, has_audio: bool) -> Example:
        number = int.from_bytes(hashlib.sha256(example.id.encode()).digest()[:8], "big")
        transcript = example.transcript or (example.answer if example.task in TRANSCRIPT_TASKS else "")
        return _replace(example, STORY_TASK, prompts[number % len(prompts)], transcript)

    return rewrite


def ask_for_transcript() -> Rewrite:
    """Returns a function that replaces the question of an example by the transcription prompt of the original."""
    (prompt,) = PromptTemplates.load_for_evaluation().by_task[TRANSCRIPTION_TASK]
    return lambda example, has_audio: _replace(example, TRANSCRIPTION_TASK, prompt, example.transcript)


def draw_clips(rows: EvaluationRows, count: int, seed: int) -> list[int]:
    """Returns the indices of up to `count` random rows with different clips, in ascending order.

    Args:
      rows: all rows.
      count: number of clips to draw.
      seed: seed of the draw. A larger count with the same seed adds rows to those of a smaller one.

    Raises:
      UserError: no row has a clip.
    """
    drawn, seen = [], set()
    for index in np.random.default_rng(seed).permutation(len(rows)).tolist():
        if len(drawn) == count:
            break
        if not rows.has_audio(index):
            continue
        try:
            clip = rows.spans(index) or rows.hash_audio(index)
        except AudioError:
            clip = index
        if clip not in seen:
            seen.add(clip)
            drawn.append(index)
    if not drawn:
        raise UserError("no row of the data sets has a clip; choose others with --manifest, --corpus or --splits")
    return sorted(drawn)


def _replace(example: Example, task: str, prompt: str, transcript: str) -> Example:
    return dataclasses.replace(
        example, task=task, prompt=prompt, transcript=transcript, question="", metric="", choices=()
    )
