"""Values that the paper publishes, with their source, to show beside ours. None is claimed to be reproduced."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Collection

_FILE = pathlib.Path(__file__).with_name("published.json")


@dataclasses.dataclass(frozen=True)
class PublishedValue:
    """Published value of a task.

    Attributes:
      task: name of the task here.
      metric: metric as the paper names it.
      value: value in the unit of the paper.
      unit: "percent", "points" or "fraction".
      test_set: data set and part.
      model: model and training stage.
      source: where it is published.
      protocol: how it is computed: "not stated" where the source does not name normaliser, tokenizer and parser.
    """

    task: str
    metric: str
    value: float
    unit: str
    test_set: str
    model: str
    source: str
    protocol: str


def published_values(tasks: Collection[str]) -> list[PublishedValue]:
    """Returns the published values of some tasks, in the order of the table file."""
    return [value for value in _all_values() if value.task in tasks]


@functools.cache
def _all_values() -> list[PublishedValue]:
    return [PublishedValue(**value) for value in json.loads(_FILE.read_text("utf-8"))]
