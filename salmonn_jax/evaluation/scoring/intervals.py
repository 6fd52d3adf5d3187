"""Confidence intervals: the bootstrap over blocks of clips, Wilson's interval, and the paired bootstrap of two runs.

A metric is a function of sums over clips (edits and words, for example). The bootstrap resamples blocks: all clips of a
speaker together, because answers to the same voice are not independent (Miller, arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

RESAMPLES = 1000
SEED = 0
Z_SCORE_95 = 1.959964  # a standard normal variable lies within +-Z_SCORE_95 with a probability of 95 %

Value = Callable[[np.ndarray], float]


def bootstrap(statistics: np.ndarray, blocks: Sequence[object], value: Value) -> tuple[float, float]:
    """Returns the 95 % percentile interval of a metric over resampled blocks, with a fixed seed.

    Args:
      statistics: float64[clips, statistics].
      blocks: block of each clip. Clips of one block are drawn together.
      value: maps the sums over clips, float64[statistics], to the metric; NaN where it is undefined. Such resamples are
        skipped.

    Returns:
      The ends of the interval. They are equal if there is a single block.
    """
    samples = np.array([value(sums) for sums in _resampled_sums(_block_sums(statistics, blocks))])
    return _percentiles(samples)


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    blocks: Sequence[object],
    value: Value,
    percentiles: tuple[float, float] = (2.5, 97.5),
) -> tuple[float, float, float]:
    """Compares two runs on the same clips.

    Args:
      first: statistics of the first run, float64[clips, statistics].
      second: statistics of the second run on the same clips, float64[clips, statistics].
      blocks: block of each clip.
      value: as in `bootstrap`.
      percentiles: of the resamples, at the ends of the interval.

    Returns:
      The ends of the interval, by default that of 95 %, of value(second) - value(first), and the two-sided p-value:
      twice the share of resamples on the side of zero that has fewer, where equality counts for both; at least
      1 / `RESAMPLES`.
    """
    width = first.shape[1]
    both = _block_sums(np.concatenate([first, second], axis=1), blocks)
    samples = np.array([value(sums[width:]) - value(sums[:width]) for sums in _resampled_sums(both)])
    low, high = _percentiles(samples, percentiles)
    samples = samples[~np.isnan(samples)]
    share = min(np.mean(samples <= 0), np.mean(samples >= 0)) if len(samples) else 1.0
    return low, high, float(min(1.0, max(2 * share, 1 / RESAMPLES)))


def wilson(proportion: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a proportion of `count` independent clips."""
    spread = Z_SCORE_95**2 / count
    centre = (proportion + spread / 2) / (1 + spread)
    half_width = Z_SCORE_95 * math.sqrt(proportion * (1 - proportion) / count + spread / (4 * count)) / (1 + spread)
    # If the proportion is 0 or 1, it equals one end of the interval. Rounding must not move that end past it.
    return max(0.0, min(proportion, centre - half_width)), min(1.0, max(proportion, centre + half_width))


def _block_sums(statistics: np.ndarray, blocks: Sequence[object]) -> np.ndarray:
    """Returns the sums over the clips of each block, float64[blocks, statistics], in the order of first occurrence."""
    index_of_block = {block: index for index, block in enumerate(dict.fromkeys(blocks))}
    sums = np.zeros((len(index_of_block), statistics.shape[1]))
    np.add.at(sums, [index_of_block[block] for block in blocks], statistics)
    return sums


def _resampled_sums(block_sums: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the sums of `RESAMPLES` resamples, float64[statistics].

    Resamples are drawn one at a time, because an index array of shape [RESAMPLES, blocks] would need too much memory.
    """
    rng = np.random.default_rng(SEED)
    for _ in range(RESAMPLES):
        yield block_sums[rng.integers(len(block_sums), size=len(block_sums))].sum(axis=0)


def _percentiles(samples: np.ndarray, percentiles: tuple[float, float] = (2.5, 97.5)) -> tuple[float, float]:
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return math.nan, math.nan
    low, high = np.percentile(samples, percentiles)
    return float(low), float(high)
