"""Metric, measurement and the exception of a metric that cannot be computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from salmonn_jax.evaluation.predictions import Prediction

# "percent": a fraction, shown in per cent. "points": shown as it is, such as BLEU, which runs from 0 to 100.
Unit = Literal["percent", "points"]


class NotComputed(Exception):
    """A metric that cannot be computed here. The message is one line that says why; the score has no value."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Statistics of the clips that a metric scores. Their sums over the clips determine the value of the metric.

    Attributes:
      scored: indices of the scored predictions, int[clips]. The others have a reference that cannot be scored.
      statistics: float64[clips, statistics].
      value: maps the sums over clips, float64[statistics], to the value; NaN where it is undefined.
      is_proportion: whether the statistics of each clip are (1, 1) or (0, 1), so that Wilson's interval applies.
      unparseable: indices of the predictions whose answer the parser cannot read. They count as wrong.
      details: counts and names for the scores file, as plain JSON values, such as the substitutions.
      corpus_value: value of the library for all clips together, if it is no function of the sums. There is no interval.
    """

    scored: np.ndarray
    statistics: np.ndarray
    value: Callable[[np.ndarray], float]
    is_proportion: bool = False
    unparseable: tuple[int, ...] = ()
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)
    corpus_value: float | None = None

    def total(self) -> float:
        """Returns the value over all scored clips."""
        return float(self.value(self.statistics.sum(axis=0))) if self.corpus_value is None else self.corpus_value


@dataclasses.dataclass(frozen=True)
class Metric:
    """Metric of a task.

    Attributes:
      name: short name, such as "wer". A protocol has each name at most once.
      title: human-readable name, which also says whether higher or lower is better.
      measure: returns the measurement of some predictions. Raises NotComputed if it is impossible here.
      unit: see `Unit`.
      settings: what determines the value beside the texts: normaliser, tokenizer, parser, predicate.
      packages: names of the distributions whose versions are recorded with the score.
      require: raises what `measure` raises if a package or program is missing. None if `measure` itself is fast enough
        to find this out.
    """

    name: str
    title: str
    measure: Callable[[Sequence[Prediction]], Measurement]
    unit: Unit = "percent"
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    packages: tuple[str, ...] = ()
    require: Callable[[], object] | None = None

    @property
    def lower_is_better(self) -> bool:
        """Returns whether lower values are better, as the title says."""
        return "lower is better" in self.title


def ratio(sums: np.ndarray) -> float:
    """Returns the first sum divided by the last one; NaN if the last one is 0."""
    return float(sums[0] / sums[-1]) if sums[-1] else float("nan")


def proportion(scored: Sequence[int], correct: Sequence[bool], **fields: object) -> Measurement:
    """Returns the measurement of the share of correct answers.

    Args:
      scored: indices of the scored predictions.
      correct: whether each of them is correct.
      **fields: further fields of the measurement.
    """
    statistics = np.array([(is_correct, 1.0) for is_correct in correct], np.float64).reshape(-1, 2)
    return Measurement(np.array(scored, int), statistics, ratio, is_proportion=True, **fields)


def mean(scored: Sequence[int], values: Sequence[float], **fields: object) -> Measurement:
    """Returns the measurement of the mean of one number per clip.

    Args:
      scored: indices of the scored predictions.
      values: number of each of them.
      **fields: further fields of the measurement.
    """
    statistics = np.array([(value, 1.0) for value in values], np.float64).reshape(-1, 2)
    return Measurement(np.array(scored, int), statistics, ratio, **fields)
