"""Task and protocol: which metrics score the answers of a task, and under which name and version."""

from __future__ import annotations

import dataclasses

from salmonn_jax.evaluation.metrics.base import Metric

PREFIX = "salmonn_jax/"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Named, versioned way to score a task. A change that can change a value gives it a new version.

    Attributes:
      name: short name with version, such as "asr-en@1". `full_name` is what the scores record.
      metrics: metrics in the order of the table. The first one is the main metric of the task.
      language: language of the references for which the protocol is made; "" for any.
    """

    name: str
    metrics: tuple[Metric, ...]
    language: str = ""

    @property
    def full_name(self) -> str:
        """Name with the project in front."""
        return PREFIX + self.name


@dataclasses.dataclass(frozen=True)
class Task:
    """Evaluation task.

    Attributes:
      name: name of the task in manifests and predictions.
      title: human-readable name.
      protocols: ways to score it. The first one is the default; `--protocol` of `launch.score` chooses another.
      is_open: whether answers are free texts, which a judge can compare with the reference.
    """

    name: str
    title: str
    protocols: tuple[Protocol, ...]
    is_open: bool = False
