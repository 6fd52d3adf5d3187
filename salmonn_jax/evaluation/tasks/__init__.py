"""Evaluation tasks, one module each. Every module of this package defines `TASK`; nothing else lists the tasks.

To add a task, add a module with its `TASK` here, and its test (see CONTRIBUTING.md).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable

from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.evaluation.metrics import get_metric, metric_names
from salmonn_jax.evaluation.protocol import Protocol, Task


def get_task(name: str) -> Task:
    """Returns the task with this name.

    Raises:
      UserError: the task is unknown. The message lists the known ones.
    """
    if name not in _tasks():
        raise _unknown("task", name, _tasks())
    return _tasks()[name]


def task_names() -> list[str]:
    """Returns the names of all tasks."""
    return sorted(_tasks())


def check_task(name: str, metric: str = "") -> None:
    """Raises UserError if predictions of a task cannot be scored.

    Args:
      name: name of the task.
      metric: generic metric that scores it, for a task of the user's own; "" for the metrics of a known task.

    Raises:
      UserError: the metric is unknown, or there is none and the task is unknown. The message lists the known ones.
    """
    if not metric:
        if name not in _tasks():
            raise UserError(f'{_unknown("task", name, _tasks())}; or name a metric, such as "metric": "accuracy"')
    elif metric not in metric_names():
        raise _unknown("metric", metric, metric_names())


def get_scorer(name: str, metric: str = "", protocol: str = "") -> tuple[Task, Protocol]:
    """Returns the task and the protocol that score some predictions.

    Args:
      name: name of the task. With a generic metric it may be unknown.
      metric: generic metric of the predictions, or "".
      protocol: name of the protocol, with or without "salmonn_jax/", or of a generic metric; "" for the default.

    Raises:
      UserError: the task, the metric or the protocol is unknown. The message lists the known ones.
    """
    check_task(name, metric)
    task = _tasks().get(name) or Task(name, name, ())
    by_name = {known.name: known for known in task.protocols}
    chosen = protocol.removeprefix("salmonn_jax/") or metric
    if not chosen:
        return task, task.protocols[0]
    if chosen in by_name:
        return task, by_name[chosen]
    if chosen.removesuffix("@1") in metric_names():
        chosen = chosen.removesuffix("@1")
        return task, Protocol(f"{chosen}@1", (get_metric(chosen),))
    raise _unknown(f"protocol of the task {name}", protocol, [*by_name, *metric_names()])


@functools.cache
def _tasks() -> dict[str, Task]:
    """Returns the tasks of the modules of this package, by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    tasks = {module.TASK.name: module.TASK for module in modules}
    if len(tasks) < len(modules):
        raise ValueError(f"two modules of {__name__} define the same task")
    return tasks


def _unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for an unknown name, with the nearest one and all known ones."""
    hint = str(unknown_name(kind, name, known)).partition("; it must be one of")[0]
    return UserError(f"{hint.rstrip('.')}; known: {', '.join(sorted(known))}")
