"""Scores of predictions, one row per split, task and metric.

Each row compares the condition "audio" (the model gets the clip) with the condition "silence" (the model gets zeros
instead of the clip). An answer that is missing because of an error counts as wrong, unless errors are excluded.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping, Sequence

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.metrics.base import Measurement, Metric, NotComputed
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.protocol import Protocol
from salmonn_jax.evaluation.scoring.intervals import bootstrap, wilson
from salmonn_jax.evaluation.tasks import get_scorer, get_task, task_names

# Descriptions of the known splits, in the order of the table. Other splits follow in alphabetical order.
SPLITS = {
    "test": "new clips from voices and files used in training",
    "unheard": "clips from voices and files not used in training",
}
BLOCK_KEYS = ("speaker", "clip")  # properties in `Prediction.group` by which clips are blocked; the first one counts


@dataclasses.dataclass(frozen=True)
class Score:
    """Value of a metric with its 95 % interval.

    Attributes:
      name: name of the metric.
      value: the metric as a fraction or in its own unit; a word error rate may exceed 1. None: not computed.
      count: number of scored clips.
      low: lower end of the 95 % interval; None if there is no interval.
      high: upper end of the 95 % interval; None if there is no interval.
      unscorable: number of clips whose references cannot be scored, such as one without any word. They do not count.
      unparseable: number of clips whose answer the parser cannot read. They count as wrong.
      notes: remarks for the reader, such as why the metric is not computed.
      details: counts of the metric, such as substitutions, or the signature of its library.
    """

    name: str
    value: float | None
    count: int
    low: float | None
    high: float | None
    unscorable: int = 0
    unparseable: int = 0
    notes: Sequence[str] = ()
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """Row of the score table.

    Attributes:
      split: name of the split.
      task: name of the task.
      metric: name of the metric.
      audio: score of the predictions with condition "audio"; None if there are none.
      silence: score of the predictions with condition "silence"; None if there are none.
      part: value of the property by which the rows are divided, or "".
      title: human-readable name of the metric, which says whether higher or lower is better.
      unit: unit of the values (see `salmonn_jax.evaluation.metrics.base.Unit`).
      protocol: full name of the protocol.
      settings: settings of the metric, and versions of the packages it uses.
    """

    split: str
    task: str
    metric: str
    audio: Score | None
    silence: Score | None
    part: str = ""
    title: str = ""
    unit: str = "percent"
    protocol: str = ""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, order=True)
class Group:
    """Predictions that are scored together: those of a split, a part of it, a task and a generic metric."""

    split: str
    part: str
    task: str
    metric: str


def score(
    predictions: Sequence[Prediction],
    *,
    protocols: Mapping[str, str] | None = None,
    exclude_errors: bool = False,
    by: str = "",
) -> list[ScoreRow]:
    """Scores every combination of split, task and metric that has predictions.

    The rows are ordered by `SPLITS`, then by task, then by the metrics of the protocol.

    Args:
      predictions: predictions of one model with one set of decoding settings.
      protocols: task -> name of its protocol (see `tasks.get_scorer`). Other tasks have their default protocol.
      exclude_errors: whether predictions with an error are left out. Otherwise they count as wrong answers.
      by: property that divides the rows: "source", "language" or a key of `Prediction.group`; "" for no division.

    Raises:
      UserError: there is no prediction, a task, metric or protocol is unknown, `protocols` names a task without
        predictions, or an example has two predictions with the same condition, as in a file that holds the predictions
        of two checkpoints.
    """
    protocols = protocols or {}
    groups = group_predictions(predictions, by)
    for task in protocols:
        if not any(group.task == task for group in groups):
            present = ", ".join(sorted({group.task for group in groups}))
            raise UserError(
                f"--protocol {task}={protocols[task]}: there is no prediction of this task; tasks: {present}"
            )
    return [
        row
        for group, by_condition in groups.items()
        for row in _score_group(group, by_condition, protocols.get(group.task, ""), exclude_errors)
    ]


def group_predictions(predictions: Sequence[Prediction], by: str = "") -> dict[Group, dict[str, list[Prediction]]]:
    """Returns group -> condition -> its predictions, in the order of the table.

    Args:
      predictions: as in `score`.
      by: as in `score`.

    Raises:
      UserError: as in `score`.
    """
    if not predictions:
        raise UserError("no prediction to score; run the evaluation first")
    groups: dict[Group, dict[str, list[Prediction]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    seen = set()
    for prediction in predictions:
        key = example_key(prediction)
        if key in seen:
            raise UserError(
                f"clip {prediction.id!r} of {prediction.source!r} has two answers for condition "
                f"{prediction.condition}; score one checkpoint with one set of decoding settings at a time"
            )
        seen.add(key)
        group = Group(prediction.split, part_of(prediction, by), prediction.task, prediction.metric)
        groups[group][prediction.condition].append(prediction)
    for group in groups:
        get_scorer(group.task, group.metric)
    if by and not any(group.part for group in groups):
        keys = sorted({key for p in predictions for key in p.group})
        raise UserError(
            f"--by {by}: no prediction has it; it must be one of: {', '.join(['source', 'language', *keys])}"
        )
    return {group: groups[group] for group in sorted(groups, key=lambda group: (_split_order(group.split), group))}


def example_key(prediction: Prediction) -> tuple[str, str, str, str, str]:
    """Returns what tells the predictions of one run apart, and pairs those of two runs."""
    return (prediction.source, prediction.split, prediction.task, prediction.id, prediction.condition)


def part_of(prediction: Prediction, by: str) -> str:
    """Returns the value of the property `by` of a prediction, or ""."""
    if by in ("source", "language"):
        return getattr(prediction, by)
    return prediction.group.get(by, "")


def block_of(prediction: Prediction) -> tuple[str, ...]:
    """Returns the block of a prediction: its speaker, or its clip, or the prediction alone."""
    for key in BLOCK_KEYS:
        if prediction.group.get(key):
            return (key, prediction.source, prediction.group[key])
    return example_key(prediction)


def task_title(name: str) -> str:
    """Returns the human-readable name of a task; the name itself for a task of the user's own."""
    return get_task(name).title if name in task_names() else name


def compute_score(metric: Metric, predictions: Sequence[Prediction]) -> Score:
    """Returns the score of some predictions, at least one. A metric that cannot be computed has no value and a note."""
    try:
        measurement = metric.measure(predictions)
    except (NotComputed, UserError) as error:  # UserError: a package of an extra is missing
        return Score(metric.name, None, 0, None, None, notes=(f"not computed: {error}",))
    count = len(measurement.scored)
    fields = {
        "unscorable": len(predictions) - count,
        "unparseable": sum(not predictions[index].error for index in measurement.unparseable),
        "details": measurement.details,
    }
    value = measurement.total() if count else math.nan
    if math.isnan(value):
        return Score(metric.name, None, 0, None, None, **fields, notes=("not computed: no reference can be scored",))
    blocks = [block_of(predictions[index]) for index in measurement.scored]
    low, high, notes = _interval(measurement, value, blocks)
    return Score(metric.name, value, count, low, high, **fields, notes=notes)


def _score_group(
    group: Group, by_condition: Mapping[str, list[Prediction]], protocol_name: str, exclude_errors: bool
) -> list[ScoreRow]:
    """Returns the rows of a group, one for each metric of its protocol."""
    _, protocol = get_scorer(group.task, group.metric, protocol_name)
    return [
        ScoreRow(
            split=group.split,
            task=group.task,
            metric=metric.name,
            audio=_score_condition(protocol, metric, by_condition.get("audio"), exclude_errors),
            silence=_score_condition(protocol, metric, by_condition.get("silence"), exclude_errors),
            part=group.part,
            title=metric.title,
            unit=metric.unit,
            protocol=protocol.full_name,
            settings={**metric.settings, **_versions(metric.packages)},
        )
        for metric in protocol.metrics
    ]


def _score_condition(
    protocol: Protocol, metric: Metric, predictions: list[Prediction] | None, exclude_errors: bool
) -> Score | None:
    """Returns the score of the predictions under one condition, or None if there are none."""
    if predictions is None:
        return None
    kept = [p for p in predictions if not (exclude_errors and p.error)]
    if not kept:
        return Score(metric.name, None, 0, None, None, notes=("not computed: every prediction has an error",))
    score = compute_score(metric, kept)
    notes = list(score.notes)
    if len(kept) < len(predictions):
        notes.append(f"{len(predictions) - len(kept)} predictions with an error are excluded")
    languages = sorted({p.language for p in kept if p.language and p.language.partition("-")[0] != protocol.language})
    if protocol.language and languages:
        notes.append(f"{protocol.name} is made for {protocol.language!r}; some references are {', '.join(languages)}")
    return dataclasses.replace(score, notes=tuple(notes))


def _interval(
    measurement: Measurement, value: float, blocks: Sequence[object]
) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Returns the ends of the 95 % interval and notes about it."""
    num_blocks = len(set(blocks))
    if measurement.corpus_value is not None:
        return None, None, ("no interval: the metric is no sum over clips",)
    if num_blocks == 1 and len(blocks) > 1:
        return None, None, ("no interval: all clips are of one speaker or clip",)
    notes = (f"interval over {num_blocks} speakers or clips",) if num_blocks < len(blocks) else ()
    if measurement.is_proportion and (num_blocks == len(blocks) or value in (0.0, 1.0)):
        return *wilson(value, num_blocks), notes
    low, high = bootstrap(measurement.statistics, blocks, measurement.value)
    return *((None, None) if math.isnan(low) else (low, high)), notes


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns package -> installed version, or "not installed"."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _split_order(split: str) -> tuple[int, str]:
    """Returns a sort key: known splits in the order of `SPLITS`, then the other splits in alphabetical order."""
    known = list(SPLITS)
    return (known.index(split) if split in known else len(known), split)
