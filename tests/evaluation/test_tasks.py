"""Tests of the registry of tasks: names, discovery, unknown names, and the tasks of the prompt file."""

from __future__ import annotations

import json
import pathlib

import pytest

import data_pipelines
from salmonn_jax.errors import UserError
from salmonn_jax.evaluation import tasks
from salmonn_jax.evaluation.metrics import get_metric, metric_names

PIPELINES = pathlib.Path(data_pipelines.__file__).parent
PROMPT_FILES = ("transforms/prompt_templates.json", "minicorpus/prompt_templates.json")


@pytest.mark.parametrize("file", PROMPT_FILES)
def test_every_task_of_a_prompt_file_has_a_scorer(file):
    assert set(json.loads((PIPELINES / file).read_text("utf-8"))) <= set(tasks.task_names())


def test_every_module_defines_one_task_and_protocols_have_a_name_and_version():
    names = [path.stem for path in pathlib.Path(tasks.__file__).parent.glob("*.py") if path.stem != "__init__"]
    assert sorted(name.lower() for name in tasks.task_names()) == sorted(names)
    settings_of_protocol = {}
    for name in tasks.task_names():
        task = tasks.get_task(name)
        assert task.name == name and task.title and task.protocols
        for protocol in task.protocols:
            assert protocol.name.partition("@")[2].isdigit()
            metrics = [metric.name for metric in protocol.metrics]
            assert metrics and len(metrics) == len(set(metrics))
            assert all("lower" in m.title or "higher" in m.title for m in protocol.metrics)
            settings = [(metric.name, dict(metric.settings)) for metric in protocol.metrics]
            assert settings_of_protocol.setdefault(protocol.name, settings) == settings


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        UserError, match=r"unknown task 'transcribed'; did you mean 'transcribe'\?; known: .*asr.*tune_type"
    ):
        tasks.check_task("transcribed")
    with pytest.raises(UserError, match=r"unknown task 'my own'.*known: .*asr.*name a metric"):
        tasks.check_task("my own")
    with pytest.raises(UserError, match=r"unknown metric 'werr'; did you mean 'wer'\?; known: accuracy, .*wer"):
        tasks.check_task("my own", "werr")
    with pytest.raises(UserError, match=r"unknown protocol of the task asr 'asr-fr@1'.*asr-en-open-asr@1.*wer"):
        tasks.get_scorer("asr", protocol="asr-fr@1")


def test_a_generic_metric_scores_a_task_of_ones_own():
    tasks.check_task("my own", "wer")
    for name in metric_names():
        task, protocol = tasks.get_scorer("my own", name)
        assert (task.name, protocol.full_name) == ("my own", f"salmonn_jax/{name}@1")
        assert protocol.metrics[0].name == get_metric(name).name


def test_protocols_are_chosen_by_name():
    default = tasks.get_scorer("asr")[1]
    assert default.full_name == "salmonn_jax/asr-en@1"
    for name in ("asr-en-open-asr-merged@1", "salmonn_jax/asr-en-open-asr-merged@1"):
        protocol = tasks.get_scorer("asr", protocol=name)[1]
        assert protocol.metrics[0].settings == {"normalizer": "open-asr", "compounds": "merged"}
    assert tasks.get_scorer("asr", protocol="cer")[1].full_name == "salmonn_jax/cer@1"


def test_a_new_module_of_the_package_is_a_new_task(tmp_path, monkeypatch):
    (tmp_path / "humming.py").write_text(
        "from salmonn_jax.evaluation.metrics import accuracy\n"
        "from salmonn_jax.evaluation.protocol import Protocol, Task\n"
        'TASK = Task("humming", "Name of a hummed tune", (Protocol("humming@1", (accuracy(),)),))\n'
    )
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    tasks._tasks.cache_clear()
    try:
        assert tasks.get_task("humming").title == "Name of a hummed tune"
    finally:
        monkeypatch.undo()
        tasks._tasks.cache_clear()
