"""Stages of training and their evaluations, as forgetting.yml names them.

    stages:
      - {name: base, evaluations: [EVAL_TEXT_0, EVAL_SPEECH_0]}     # before any training
      - {name: speech, evaluations: [EVAL_TEXT_1, EVAL_SPEECH_1]}
      - {name: speech with replay, after: base, evaluations: [...]}
    tasks:                                                           # optional
      - {task: text, chance: 0.25, choices: 4}
      - {task: numbers, taught: speech}

A stage follows the one before it in the list, or the one that `after` names. An evaluation is a directory of
`launch.evaluate`; paths are relative to the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass

from salmonn_jax.config.typed import STRICT, from_dict
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.evaluation.metrics.base import Metric
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.tasks import get_scorer
from salmonn_jax.forgetting.yaml_files import read_yaml
from salmonn_jax.paths import Path

TEXT, SPEECH = "text to text", "speech to text"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """Model after a stage of training, or a variant of it."""

    name: str = Field(min_length=1, description="name in the report")
    evaluations: list[str] = Field(min_length=1, description="directories of launch.evaluate")
    after: str | None = Field(None, description="stage from which it was trained; by default the one before it")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MeasuredTask:
    """How a task is read; tasks that are not listed have the defaults."""

    task: str = Field(min_length=1, description="name of the task in the predictions")
    source: str = Field("", description="data set whose rows count; by default all")
    metric: str = Field("", description="metric of the task's protocol; by default its first")
    taught: str = Field("", description="stage that teaches the task; by default the first stage")
    chance: float = Field(0.0, ge=0, lt=1, description="score of a guess")
    choices: int = Field(0, ge=0, description="answers from which one is right; 0 for an open answer")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ForgettingConfig:
    """Stages and tasks of a report."""

    stages: list[Stage] = Field(min_length=2, description="the first is the model before any training")
    tasks: list[MeasuredTask] = Field(default_factory=list, description="tasks that are read in another way")


@dataclasses.dataclass(frozen=True)
class Column:
    """Task of the report on one channel.

    Attributes:
      task: how the task is read.
      channel: `TEXT` or `SPEECH`.
      split: name of the split.
      metric: metric that scores it.
      items: predictions of each stage by item, in the order of the stages; a stage that was not measured has none.
    """

    task: MeasuredTask
    channel: str
    split: str
    metric: Metric
    items: tuple[Mapping[str, Prediction], ...]

    @property
    def name(self) -> str:
        """Returns the name of the task, with its source if rows of others are left out."""
        return f"{self.task.task} ({self.task.source})" if self.task.source else self.task.task


def read_config(path: Path) -> ForgettingConfig:
    """Reads forgetting.yml.

    Raises:
      UserError: the file is missing or wrong, or two stages have one name.
    """
    config = from_dict(ForgettingConfig, read_yaml(path))
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise UserError(f"{path} has two stages of one name: {', '.join(names)}")
    for i, stage in enumerate(config.stages):
        if stage.after is not None and stage.after not in names[:i]:
            raise unknown_name(f"stage in stages[{i}].after, which must be an earlier one,", stage.after, names[:i])
    for i, task in enumerate(config.tasks):
        if task.taught and task.taught not in names:
            raise unknown_name(f"stage in tasks[{i}].taught", task.taught, names)
    return config


def check_settings(settings: Mapping[str, Mapping[str, object]]) -> None:
    """Raises UserError if two evaluations were decoded differently, but for the model and the use of its adapters.

    Args:
      settings: settings in run.json, by evaluation.
    """
    allowed = ("model.fingerprint", "model.config", "generation_config.lora_multiplier", "generation_config.lora_gate")
    first_name, first = next(iter(settings.items()), ("", {}))
    for name, values in settings.items():
        for key in sorted({*first, *values} - {*allowed}):
            if first.get(key) != values.get(key):
                raise UserError(
                    f"{name} was made with {key}={values.get(key)!r}, and {first_name} with {first.get(key)!r}; "
                    "evaluate all stages with the same settings"
                )


def make_columns(config: ForgettingConfig, predictions: Sequence[Sequence[Prediction]]) -> list[Column]:
    """Arranges the predictions of all stages by task, channel and split.

    Args:
      config: stages and tasks.
      predictions: predictions of each stage.

    Raises:
      UserError: an item has other references or another prompt in another stage, or a configured task has no
        predictions.
    """
    found: dict[tuple[str, str, str, str], list[dict[str, Prediction]]] = {}
    settings = {task.task: task for task in config.tasks}
    for stage, of_stage in enumerate(predictions):
        for prediction in of_stage:
            task = settings.get(prediction.task) or MeasuredTask(task=prediction.task)
            if prediction.condition != "audio" or (task.source and prediction.source != task.source):
                continue
            channel = SPEECH if prediction.audio_seconds else TEXT
            key = (channel, prediction.task, prediction.split, prediction.metric)
            items = found.setdefault(key, [{} for _ in predictions])
            items[stage][f"{prediction.source}/{prediction.id}"] = prediction
    missing = sorted(set(settings) - {task for _, task, _, _ in found})
    if missing:
        raise UserError(f"tasks: no stage has predictions of {missing[0]!r}; correct the name, or evaluate it")
    columns = []
    for (channel, name, split, metric), items in sorted(found.items()):
        task = settings.get(name) or MeasuredTask(task=name)
        _, protocol = get_scorer(name, metric)
        metrics = {known.name: known for known in protocol.metrics}
        if task.metric and task.metric not in metrics:
            raise unknown_name(f"metric of the task {name}", task.metric, metrics)
        chosen = metrics[task.metric] if task.metric else protocol.metrics[0]
        column = Column(task, channel, split, chosen, tuple(items))
        _check_same_items(column, [stage.name for stage in config.stages])
        columns.append(column)
    return columns


def _check_same_items(column: Column, stages: Sequence[str]) -> None:
    """Raises UserError if stages were asked other questions: other items, prompts or references."""
    first = next(i for i, items in enumerate(column.items) if items)
    for stage, items in enumerate(column.items):
        if not items:
            continue
        for key in items.keys() ^ column.items[first].keys():
            has, lacks = (stage, first) if key in items else (first, stage)
            raise UserError(
                f"{column.name}: {stages[has]} answered {key} and {stages[lacks]} did not; evaluate both on the same "
                "rows"
            )
        for key, prediction in items.items():
            other = column.items[first][key]
            for field in ("prompt", "question", "choices", "references"):
                ours, theirs = getattr(prediction, field), getattr(other, field)
                if list(ours) != list(theirs):
                    raise UserError(
                        f"{column.name}: {key} has another {field} in {stages[stage]} than in {stages[first]}; the two "
                        "cannot be compared"
                    )
