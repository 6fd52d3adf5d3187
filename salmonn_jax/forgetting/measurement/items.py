"""Paired comparison of two stages, item by item: transitions, chance, and intervals of a difference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

Z_SCORE_95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Transitions:
    """How the answers to the same questions changed. Shares are of all questions.

    Attributes:
      count: number of questions.
      forgotten: share that was right before and is wrong now.
      learned: share that was wrong before and is right now.
      before: share that was right before.
      after: share that is right now.
      p_value: two-sided p-value of an exact McNemar test.
    """

    count: int
    forgotten: float
    learned: float
    before: float
    after: float
    p_value: float

    @property
    def difference(self) -> float:
        """Returns the change of accuracy, `learned - forgotten`."""
        return self.learned - self.forgotten

    @property
    def standard_error(self) -> float:
        """Returns the standard error of the change of accuracy, from the questions whose answers changed."""
        variance = self.forgotten + self.learned - self.difference**2
        return math.sqrt(max(variance, 0.0) / self.count)

    def interval(self, z: float = Z_SCORE_95) -> tuple[float, float]:
        """Returns the ends of the interval of the change, half a question wider than the normal one.

        Args:
          z: standard errors on each side; 1.96 for 95 %.
        """
        half_width = z * self.standard_error + 0.5 / self.count
        return max(-1.0, self.difference - half_width), min(1.0, self.difference + half_width)

    def above_chance(self, num_choices: int) -> tuple[float, float]:
        """Returns the shares forgotten and learned without lucky guesses, for questions with this number of choices.

        A question counts as known or guessed. A guess is right with probability 1 / choices, so that the share of lucky
        answers is (1 - accuracy) / (choices - 1); what guesses alone would change is subtracted. Two models that guess
        independently forget nothing.

        Args:
          num_choices: answers from which one is right, at least 2.
        """
        lucky_before = (1 - self.before) / (num_choices - 1)
        lucky_after = (1 - self.after) / (num_choices - 1)
        forgotten = self.forgotten - lucky_before * (1 - self.after)
        learned = self.learned - (1 - self.before) * lucky_after
        return max(0.0, forgotten), max(0.0, learned)


def transitions(before: np.ndarray, after: np.ndarray) -> Transitions:
    """Compares the answers of two stages to the same questions.

    Args:
      before: whether each answer of the earlier stage is right, bool[questions].
      after: whether each answer of the later stage is right, bool[questions].

    Raises:
      ValueError: the numbers differ or are 0.
    """
    before, after = np.asarray(before, bool), np.asarray(after, bool)
    if before.shape != after.shape or not before.size:
        raise ValueError(f"{before.shape} and {after.shape} answers cannot be paired")
    from scipy.stats import binomtest

    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p_value = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    count = before.size
    return Transitions(count, lost / count, won / count, float(before.mean()), float(after.mean()), p_value)
