"""Scores of every stage on every task, and what changed since the first stage, with intervals of paired items."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from salmonn_jax.evaluation.metrics.base import Measurement
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.scoring.intervals import paired_bootstrap
from salmonn_jax.evaluation.scoring.rows import block_of, compute_score
from salmonn_jax.forgetting.measurement.items import Transitions, transitions
from salmonn_jax.forgetting.measurement.matrix import StageMatrix
from salmonn_jax.forgetting.measurement.stages import Column, ForgettingConfig


@dataclasses.dataclass(frozen=True)
class CellScore:
    """Score of a stage on a task, from 0 to 1 and better if higher; an error rate counts as 1 - min(rate, 1).

    Attributes:
      value: the score; None if the stage was not measured or the metric cannot be computed.
      low: lower end of the 95 % interval; None if there is none.
      high: upper end of the 95 % interval; None if there is none.
      count: scored items.
      followed: share of the answers that have the form that the task asks for.
      given_followed: score of those answers alone; None if there is none or the metric is no share of right answers.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int = 0
    followed: float | None = None
    given_followed: float | None = None


@dataclasses.dataclass(frozen=True)
class Change:
    """Change of a task from one stage to another, on the items of both.

    Attributes:
      difference: later minus earlier score; negative is forgetting.
      low: lower end of the 95 % interval; None if there is none.
      high: upper end of the 95 % interval; None if there is none.
      p_value: two-sided p-value; None if there is none.
      count: paired items.
      forgotten: share of the items that were right and are wrong; None for metrics that are no share of right answers.
      learned: share of the items that were wrong and are right.
      forgotten_above_chance: the same without lucky guesses; None for open answers.
      learned_above_chance: see `forgotten_above_chance`.
      retained: later score divided by the earlier one.
      retained_above_chance: the same above the score of a guess; None if the earlier score does not exceed it by more
        than its interval.
    """

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    count: int = 0
    forgotten: float | None = None
    learned: float | None = None
    forgotten_above_chance: float | None = None
    learned_above_chance: float | None = None
    retained: float | None = None
    retained_above_chance: float | None = None


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Items of a task that two stages answered.

    Attributes:
      column: the task.
      earlier: statistics of the items at the earlier stage, float64[items, statistics].
      later: statistics of the items at the later stage, float64[items, statistics].
      value: maps sums of statistics to the metric.
      blocks: block of each item (see `salmonn_jax.evaluation.scoring.rows.block_of`).
      is_proportion: whether an item is right or wrong.
    """

    column: Column
    earlier: np.ndarray
    later: np.ndarray
    value: Callable[[np.ndarray], float]
    blocks: tuple[object, ...]
    is_proportion: bool

    @property
    def earlier_score(self) -> float:
        """Returns the score of the earlier stage."""
        return _score(self.column, self.value(self.earlier.sum(axis=0)))

    @property
    def later_score(self) -> float:
        """Returns the score of the later stage."""
        return _score(self.column, self.value(self.later.sum(axis=0)))

    @property
    def transitions(self) -> Transitions | None:
        """Returns how answers changed; None if the metric is no share of right answers."""
        return transitions(self.earlier[:, 0] > 0, self.later[:, 0] > 0) if self.is_proportion else None

    def interval(self, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
        """Returns the ends of the two-sided interval of the change, and its p-value; None without two blocks.

        Args:
          level: confidence of the interval.
        """
        if len(set(self.blocks)) < 2:
            return None, None, None
        tail = 50 * (1 - level)
        return paired_bootstrap(
            self.earlier,
            self.later,
            self.blocks,
            lambda sums: _score(self.column, self.value(sums)),
            (tail, 100 - tail),
        )


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Results of all stages on a task.

    Attributes:
      name: name of the task.
      channel: "text to text" or "speech to text".
      split: name of the split.
      metric: name of the metric.
      title: human-readable name of the metric.
      chance: score of a guess.
      taught: index of the stage that teaches the task.
      scores: score of each stage.
      changes: change of each stage since the first one.
    """

    name: str
    channel: str
    split: str
    metric: str
    title: str
    chance: float
    taught: int
    scores: tuple[CellScore, ...]
    changes: tuple[Change, ...]


def task_results(config: ForgettingConfig, columns: Sequence[Column]) -> list[TaskResult]:
    """Returns the results of every task."""
    names = [stage.name for stage in config.stages]
    results = []
    for column in columns:
        scores = tuple(cell_score(column, list(items.values())) for items in column.items)
        changes = tuple(change(column, 0, stage, scores[0]) for stage in range(len(names)))
        taught = names.index(column.task.taught) if column.task.taught else 0
        results.append(
            TaskResult(
                name=column.name,
                channel=column.channel,
                split=column.split,
                metric=column.metric.name,
                title=column.metric.title,
                chance=column.task.chance,
                taught=taught,
                scores=scores,
                changes=changes,
            )
        )
    return results


def chain(config: ForgettingConfig, stage: int) -> list[int]:
    """Returns the stages from the first one to `stage`, each of which was trained from the one before."""
    names = [known.name for known in config.stages]
    path = [stage]
    while path[0] > 0:
        after = config.stages[path[0]].after
        path.insert(0, path[0] - 1 if after is None else names.index(after))
    return path


def stage_matrix(config: ForgettingConfig, results: Sequence[TaskResult], stage: int) -> StageMatrix:
    """Returns the scores along the chain that ends in a stage.

    A task counts as taught by the stage of the chain that is as many stages after the first one as the stage that
    teaches it, so that a variant of that stage teaches it too; and by the last one if the chain is shorter.
    """
    path = chain(config, stage)
    scores = [[_number(result.scores[i].value) for result in results] for i in path]
    taught = [min(len(chain(config, result.taught)), len(path)) - 1 for result in results]
    chance = np.array([result.chance for result in results])
    return StageMatrix(np.array(scores).reshape(len(path), len(results)), np.array(taught, int), chance)


def change(column: Column, earlier: int, later: int, earlier_score: CellScore) -> Change:
    """Returns what changed on a task between two stages.

    Args:
      column: the task.
      earlier: index of the earlier stage.
      later: index of the later stage.
      earlier_score: score of the earlier stage.
    """
    paired = pair(column, earlier, later)
    if paired is None:
        return Change()
    low, high, p_value = paired.interval()
    value, other = paired.later_score, paired.earlier_score
    result = Change(
        difference=value - other,
        low=low,
        high=high,
        p_value=p_value,
        count=len(paired.blocks),
        retained=value / other if other > 0 else None,
    )
    chance, choices = column.task.chance, column.task.choices
    if earlier_score.low is not None and earlier_score.low > chance:
        result = dataclasses.replace(result, retained_above_chance=(value - chance) / (other - chance))
    moved = paired.transitions
    if moved is None:
        return result
    result = dataclasses.replace(result, forgotten=moved.forgotten, learned=moved.learned)
    if choices > 1:
        forgotten, learned = moved.above_chance(choices)
        result = dataclasses.replace(result, forgotten_above_chance=forgotten, learned_above_chance=learned)
    return result


def pair(column: Column, earlier: int, later: int) -> Pairs | None:
    """Returns the items that two stages answered and that can be scored; None if there are none.

    Args:
      column: the task.
      earlier: index of the earlier stage.
      later: index of the later stage.
    """
    if not column.items[earlier] or not column.items[later]:
        return None
    keys = list(column.items[earlier])
    sides = ([column.items[stage][key] for key in keys] for stage in (earlier, later))
    first, second = map(column.metric.measure, sides)
    _, first_rows, second_rows = np.intersect1d(first.scored, second.scored, return_indices=True)
    if not len(first_rows) or first.corpus_value is not None:
        return None
    blocks = (block_of(column.items[earlier][keys[index]]) for index in first.scored[first_rows])
    return Pairs(
        column,
        first.statistics[first_rows],
        second.statistics[second_rows],
        first.value,
        tuple(blocks),
        first.is_proportion and not column.metric.lower_is_better,
    )


def cell_score(column: Column, predictions: list[Prediction]) -> CellScore:
    """Returns the score of a stage."""
    if not predictions:
        return CellScore()
    score = compute_score(column.metric, predictions)
    if score.value is None:
        return CellScore(count=score.count)
    ends = [_score(column, end) if end is not None else None for end in (score.low, score.high)]
    low, high = reversed(ends) if column.metric.lower_is_better else ends
    measurement = column.metric.measure(predictions)
    return CellScore(_score(column, score.value), low, high, score.count, *_followed(measurement))


def _followed(measurement: Measurement) -> tuple[float | None, float | None]:
    """Returns the share of answers that can be parsed, and the share of right ones among them."""
    if not measurement.is_proportion or not len(measurement.scored):
        return None, None
    parsed = ~np.isin(measurement.scored, measurement.unparseable)
    right = measurement.statistics[:, 0] > 0
    return float(parsed.mean()), float(right[parsed].mean()) if parsed.any() else None


def _score(column: Column, value: float) -> float:
    """Returns a value of the metric as a score that is better if higher."""
    if math.isnan(value):
        return value
    if column.metric.lower_is_better:
        return 1 - min(value, 1.0)
    return value / 100 if column.metric.unit == "points" else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
