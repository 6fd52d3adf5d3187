"""Metrics that cannot be computed on this machine, found before there is anything to score."""

from __future__ import annotations

from collections.abc import Iterable

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.metrics.base import Metric, NotComputed
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.tasks import get_scorer


def find_obstacles(tasks: Iterable[tuple[str, str, str]]) -> list[str]:
    """Returns which metrics cannot be computed for want of a package or program, grouped by the reason.

    Args:
      tasks: task, generic metric or "", and language of the rows.
    """
    metrics_by_reason: dict[str, dict[str, None]] = {}
    for task, generic_metric, language in sorted(tasks):
        _, protocol = get_scorer(task, generic_metric)
        for metric in protocol.metrics:
            if reason := _obstacle(metric, language):
                metrics_by_reason.setdefault(reason, {})[f"{task} {metric.name}"] = None
    return [f"{', '.join(metrics)} ({reason})" for reason, metrics in metrics_by_reason.items()]


def _obstacle(metric: Metric, language: str) -> str:
    """Returns why a metric cannot be computed; "" if it can."""
    try:
        if metric.require is None:
            metric.measure([_probe(language)])
        else:
            metric.require()
    except (NotComputed, UserError) as error:
        return str(error)
    return ""


def _probe(language: str) -> Prediction:
    """Returns a prediction that every metric can score."""
    return Prediction(
        key="probe",
        id="probe",
        source="probe",
        split="probe",
        task="probe",
        condition="audio",
        prompt="",
        references=["a"],
        language=language,
        prediction="a",
        finish_reason="stop",
        audio_seconds=0.0,
        too_long="error",
        windows=[],
    )
