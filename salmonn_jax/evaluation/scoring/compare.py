"""Paired comparison of two runs on the examples that both answered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.metrics.base import Metric, NotComputed
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.scoring.intervals import paired_bootstrap
from salmonn_jax.evaluation.scoring.rows import Group, block_of, example_key, group_predictions
from salmonn_jax.evaluation.scoring.table import format_cells, format_value
from salmonn_jax.evaluation.tasks import get_scorer


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Difference of two runs in one metric.

    Attributes:
      split: name of the split.
      part: as in `ScoreRow`.
      task: name of the task.
      metric: name of the metric.
      condition: condition of the predictions.
      unit: unit of the values.
      count: number of clips that both runs answered and that can be scored.
      left_out: number of clips that only one run answered, or for which the runs have different references.
      value: value of the run on these clips; None if it is not computed.
      other_value: value of the other run on these clips.
      difference: `value` - `other_value`.
      low: lower end of the 95 % interval of the difference (see `paired_bootstrap`).
      high: upper end of that interval.
      p_value: two-sided p-value of the difference.
      note: why there is no value or interval, or "".
    """

    split: str
    part: str
    task: str
    metric: str
    condition: str
    unit: str
    count: int
    left_out: int
    value: float | None = None
    other_value: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    note: str = ""


def compare(
    predictions: Sequence[Prediction],
    other_predictions: Sequence[Prediction],
    *,
    protocols: Mapping[str, str] | None = None,
    exclude_errors: bool = False,
    by: str = "",
) -> list[Comparison]:
    """Compares two runs in each metric. Clips are paired by source, split, task, id and condition.

    Args:
      predictions: predictions of a run.
      other_predictions: predictions of the other run.
      protocols: as in `score`.
      exclude_errors: whether clips for which either run has an error are left out.
      by: as in `score`.

    Raises:
      UserError: the runs have no example in common, or as in `score`.
    """
    other_by_key = {example_key(p): p for p in other_predictions}
    groups = group_predictions(predictions, by)
    other_groups = group_predictions(other_predictions)
    if not any(example_key(p) in other_by_key for p in predictions):
        tasks = sorted({group.task for group in other_groups})
        raise UserError(f"the two runs have no example in common; the other run has the tasks {', '.join(tasks)}")
    comparisons = []
    for group, by_condition in groups.items():
        _, protocol = get_scorer(group.task, group.metric, (protocols or {}).get(group.task, ""))
        for condition, members in by_condition.items():
            pairs = [(p, other_by_key[example_key(p)]) for p in members if example_key(p) in other_by_key]
            pairs = [(p, o) for p, o in pairs if list(p.references) == list(o.references)]
            pairs = [(p, o) for p, o in pairs if not (exclude_errors and (p.error or o.error))]
            left_out = len(members) - len(pairs)
            comparisons += [_compare_metric(group, condition, metric, pairs, left_out) for metric in protocol.metrics]
    return comparisons


def format_comparisons(comparisons: Sequence[Comparison], name: str, other_name: str) -> str:
    """Formats the comparisons as a plain-text table.

    Args:
      comparisons: comparisons of two runs.
      name: name of the run.
      other_name: name of the other run.
    """
    cells = [("task", "metric", "split", "condition", "clips", "left out", name, other_name, "difference", "p")]
    for c in comparisons:
        line = (c.task, c.metric, " ".join(filter(None, (c.split, c.part))), c.condition, str(c.count), str(c.left_out))
        values = (c.note or "not computed", "", "", "")
        if c.value is not None and c.other_value is not None:
            values = (format_value(c.value, c.unit), format_value(c.other_value, c.unit), *_format_difference(c))
        cells.append((*line, *values))
    return format_cells(cells)


def _compare_metric(
    group: Group, condition: str, metric: Metric, pairs: Sequence[tuple[Prediction, Prediction]], left_out: int
) -> Comparison:
    """Returns the comparison of some pairs in one metric."""
    empty = Comparison(*dataclasses.astuple(group)[:3], metric.name, condition, metric.unit, 0, left_out)
    if not pairs:
        return dataclasses.replace(empty, note="no common clip")
    ours, theirs = zip(*pairs, strict=True)
    try:
        first, second = metric.measure(theirs), metric.measure(ours)
    except (NotComputed, UserError) as error:
        return dataclasses.replace(empty, note=f"not computed: {error}")
    _, first_rows, second_rows = np.intersect1d(first.scored, second.scored, return_indices=True)
    blocks = [block_of(ours[index]) for index in second.scored[second_rows]]
    empty = dataclasses.replace(empty, count=len(blocks))
    if first.corpus_value is not None or second.corpus_value is not None:
        values = {"value": second.total(), "other_value": first.total()}
        return dataclasses.replace(empty, **values, difference=values["value"] - values["other_value"])
    a, b = first.statistics[first_rows], second.statistics[second_rows]
    other_value, value = (first.value(a.sum(axis=0)), first.value(b.sum(axis=0))) if blocks else (math.nan, math.nan)
    if math.isnan(value) or math.isnan(other_value):
        return dataclasses.replace(empty, note="not computed: no reference can be scored")
    result = dataclasses.replace(empty, value=value, other_value=other_value, difference=value - other_value)
    if len(set(blocks)) == 1:
        return dataclasses.replace(result, note="no interval: all clips are of one speaker or clip")
    low, high, p_value = paired_bootstrap(a, b, blocks, first.value)
    return dataclasses.replace(result, low=low, high=high, p_value=p_value)


def _format_difference(c: Comparison) -> tuple[str, str]:
    """Returns the cells of the difference with its interval, and of the p-value."""
    factor, digits = (100, 1) if c.unit == "percent" else (1, 3)
    ends = (
        "" if c.low is None or c.high is None else f" [{factor * c.low:+.{digits}f} to {factor * c.high:+.{digits}f}]"
    )
    return f"{factor * c.difference:+.{digits}f}{ends}", "" if c.p_value is None else f"{c.p_value:.3f}"
