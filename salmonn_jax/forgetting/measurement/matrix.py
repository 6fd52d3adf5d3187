"""Measures of continual learning on a matrix of scores, stage by task.

Scores are better if higher and lie between 0 and 1. Stage 0 is the model before any training; a task is taught by one
stage, 0 for a task that the first model knows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class StageMatrix:
    """Scores of all stages.

    Attributes:
      scores: float64[stages, tasks]; NaN where a stage was not measured on a task.
      taught: stage that teaches each task, int[tasks].
      chance: score of a guess on each task, float64[tasks].
    """

    scores: np.ndarray
    taught: np.ndarray
    chance: np.ndarray

    @property
    def last(self) -> int:
        """Returns the last stage."""
        return len(self.scores) - 1

    def average(self) -> float:
        """Returns the mean score of the last stage over all tasks."""
        return _mean(self.scores[-1])

    def backward_transfer(self) -> float:
        """Returns the mean change since each task was taught (Lopez-Paz and Ranzato 2017, BWT).

        Tasks that the last stage teaches do not count.
        """
        return _mean([self.scores[-1, j] - self.scores[self.taught[j], j] for j in self._earlier()])

    def forgetting(self) -> float:
        """Returns the mean drop from the best score since each task was taught (Chaudhry et al. 2018)."""
        return _mean(self.forgetting_by_task()[self._earlier()])

    def forgetting_by_task(self) -> np.ndarray:
        """Returns the drop from the best score since each task was taught, float64[tasks]; NaN for the last tasks."""
        drops = np.full(self.scores.shape[1], math.nan)
        for j in self._earlier():
            before = self.scores[self.taught[j] : self.last, j]
            if not np.isnan(before).all():
                drops[j] = np.nanmax(before) - self.scores[-1, j]
        return drops

    def first_minus_last(self) -> float:
        """Returns what Avalanche calls forgetting: the mean drop since each task was taught, minus the transfer."""
        return -self.backward_transfer()

    def forward_transfer(self, reference: Sequence[float] | None = None) -> float:
        """Returns the mean gain on tasks before they are taught (Lopez-Paz and Ranzato 2017, FWT).

        Args:
          reference: score of each task that counts as no transfer; by default that of a guess.
        """
        reference = self.chance if reference is None else np.asarray(reference, float)
        later = np.flatnonzero(self.taught > 0)
        return _mean([self.scores[self.taught[j] - 1, j] - reference[j] for j in later])

    def intransigence(self, joint: Sequence[float]) -> np.ndarray:
        """Returns what sequential training fails to learn of each task, float64[tasks] (Chaudhry et al. 2018).

        Args:
          joint: score of each task after joint training on all.
        """
        return np.asarray(joint, float) - self.scores[self.taught, np.arange(len(self.taught))]

    def retained(self, *, above_chance: bool = False) -> np.ndarray:
        """Returns the share of the score of stage 0 that the last stage keeps, float64[tasks]; NaN where it is none.

        Args:
          above_chance: whether only what exceeds a guess counts.
        """
        chance = self.chance if above_chance else np.zeros_like(self.chance)
        before = self.scores[0] - chance
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before > 0, (self.scores[-1] - chance) / before, math.nan)

    def _earlier(self) -> np.ndarray:
        """Returns the tasks that an earlier stage than the last one teaches."""
        return np.flatnonzero(self.taught < self.last)


def change_of_rate(rate: float, reference: float) -> float:
    """Returns (rate - reference) / reference, the forgetting rate of Speech-IFEval (Lu et al. 2025)."""
    return (rate - reference) / reference


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Returns the mean of the values that are known; NaN if none is."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan
