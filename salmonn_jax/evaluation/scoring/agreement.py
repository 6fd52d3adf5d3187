"""Agreement of the answers of two runs: what another device mesh, dtype or batch size changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.scoring.rows import example_key, group_predictions
from salmonn_jax.evaluation.scoring.table import format_cells


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of two runs on the clips that both answered without an error.

    Attributes:
      split: name of the split.
      part: as in `ScoreRow`.
      task: name of the task.
      condition: condition of the predictions.
      count: number of these clips.
      identical: number of clips whose two answers are the same text.
      score_gap: mean of the absolute differences of the decoder's scores (log-probabilities, see `Prediction`).
      largest_score_gap: largest of these differences.
      identical_score_gap: largest of these differences among clips with identical texts; None if there are none.
    """

    split: str
    part: str
    task: str
    condition: str
    count: int
    identical: int
    score_gap: float
    largest_score_gap: float
    identical_score_gap: float | None


def agreement(
    predictions: Sequence[Prediction], other_predictions: Sequence[Prediction], *, by: str = ""
) -> list[Agreement]:
    """Counts identical texts of two runs. Clips are paired as in `scoring.compare.compare`.

    Groups in which the runs have no such clip in common are left out.

    Args:
      predictions: predictions of a run.
      other_predictions: predictions of the other run.
      by: as in `score`.
    """
    other_by_key = {example_key(p): p for p in other_predictions if not p.error}
    rows = []
    for group, by_condition in group_predictions(predictions, by).items():
        for condition, members in by_condition.items():
            answered = [p for p in members if not p.error and example_key(p) in other_by_key]
            pairs = [(p, other_by_key[example_key(p)]) for p in answered]
            if not pairs:
                continue
            same = np.array([p.prediction == other.prediction for p, other in pairs])
            gaps = np.abs([p.score - other.score for p, other in pairs])
            rows.append(
                Agreement(
                    *(group.split, group.part, group.task, condition, len(pairs), int(same.sum())),
                    score_gap=float(gaps.mean()),
                    largest_score_gap=float(gaps.max()),
                    identical_score_gap=float(gaps[same].max()) if same.any() else None,
                )
            )
    return rows


def format_agreement(rows: Sequence[Agreement]) -> str:
    """Formats the agreement of two runs as a plain-text table. "" without rows."""
    cells = [("task", "split", "condition", "clips", "identical texts", "score gap", "largest", "of identical texts")]
    for row in rows:
        share = f"{row.identical} ({100 * row.identical / row.count:.1f} %)"
        largest = "-" if row.identical_score_gap is None else f"{row.identical_score_gap:.2g}"
        split = " ".join(filter(None, (row.split, row.part)))
        gaps = (f"{row.score_gap:.2g}", f"{row.largest_score_gap:.2g}", largest)
        cells.append((row.task, split, row.condition, str(row.count), share, *gaps))
    return format_cells(cells) if rows else ""
