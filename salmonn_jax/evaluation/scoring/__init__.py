"""Scoring of predictions, without JAX. Used by `launch.evaluate`, `launch.score` and the report."""

from salmonn_jax.evaluation.scoring.failures import FailureCounts, count_failures
from salmonn_jax.evaluation.scoring.rows import Score, ScoreRow, score
from salmonn_jax.evaluation.scoring.table import format_failures, format_table, to_json

__all__ = [
    "FailureCounts",
    "Score",
    "ScoreRow",
    "count_failures",
    "format_failures",
    "format_table",
    "score",
    "to_json",
]
