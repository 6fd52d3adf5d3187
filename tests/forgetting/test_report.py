"""The report of forgetting, on predictions whose scores are computed again here by other code."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import yaml

from launch import cli, forgetting
from salmonn_jax.errors import UserError
from salmonn_jax.forgetting.measurement.report import make_report, trade_off
from salmonn_jax.forgetting.measurement.stages import make_columns, read_config
from salmonn_jax.paths import as_path
from tests.evaluation.answers import make_prediction

STAGES = ("base", "speech", "with replay")
CONFIG = {
    "stages": [
        {"name": "base", "evaluations": ["base"]},
        {"name": "speech", "evaluations": ["speech"]},
        {"name": "with replay", "after": "base", "evaluations": ["replay"]},
    ],
    "tasks": [{"task": "text", "chance": 0.25, "choices": 4}, {"task": "asr", "taught": "speech"}],
}
# Share of right text answers and of words that are heard wrong, by stage.
RIGHT, WRONG_WORDS = (0.7, 0.3, 0.65), (0.9, 0.2, 0.25)
NUM_ITEMS = 200
NO_AUDIO = {"audio_seconds": 0.0, "windows": [], "prompt": "Which letter?"}


def answers(stage: int) -> list:
    """Returns predictions of a stage: text questions with one of four answers, and transcripts of ten words."""
    rng, made = np.random.default_rng(stage), []
    for i in range(NUM_ITEMS):
        right = rng.random() < RIGHT[stage]
        made.append(
            make_prediction(
                "text", "abcd"[i % 4], "abcd"[(i + (not right)) % 4], id=f"t{i}", source="questions", **NO_AUDIO
            )
        )
        words = [f"w{j}" for j in range(10)]
        heard = [word if rng.random() > WRONG_WORDS[stage] else "x" for word in words]
        made.append(make_prediction("asr", " ".join(words), " ".join(heard), id=f"a{i}", source="clips"))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with forgetting.yml and the evaluations of three stages."""
    folder = tmp_path_factory.mktemp("forgetting")
    for stage, name in enumerate(("base", "speech", "replay")):
        write_evaluation(folder / name, answers(stage))
    (folder / "forgetting.yml").write_text(yaml.safe_dump(CONFIG))
    return folder


def write_evaluation(directory, predictions) -> None:
    directory.mkdir(parents=True)
    lines = (json.dumps(dataclasses.asdict(prediction)) for prediction in predictions)
    (directory / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def report(folder):
    config = read_config(as_path(folder / "forgetting.yml"))
    return make_report(config, make_columns(config, [answers(stage) for stage in range(3)]))


def test_every_number_can_be_computed_from_the_predictions(report):
    asr, text = report.tasks
    assert (asr.name, asr.channel, text.name, text.channel) == ("asr", "speech to text", "text", "text to text")
    rights, wers = [], []
    for stage in range(3):
        made = answers(stage)
        rights.append(np.array([p.prediction == p.references[0] for p in made if p.task == "text"]))
        pairs = [(p.prediction.split(), p.references[0].split()) for p in made if p.task == "asr"]
        wers.append(sum(a != b for x, y in pairs for a, b in zip(x, y, strict=True)) / (10 * NUM_ITEMS))
    for stage in range(3):
        assert text.scores[stage].value == pytest.approx(rights[stage].mean())
        assert asr.scores[stage].value == pytest.approx(1 - wers[stage])
        changed = text.changes[stage]
        assert changed.difference == pytest.approx(rights[stage].mean() - rights[0].mean())
        assert changed.forgotten == pytest.approx((rights[0] & ~rights[stage]).mean())
        assert changed.learned == pytest.approx((~rights[0] & rights[stage]).mean())
        assert changed.learned - changed.forgotten == pytest.approx(changed.difference)
        assert changed.retained == pytest.approx(rights[stage].mean() / rights[0].mean())
        above = (rights[stage].mean() - 0.25) / (rights[0].mean() - 0.25)
        assert changed.retained_above_chance == pytest.approx(above)
    assert asr.changes[1].difference == pytest.approx(wers[0] - wers[1])
    assert text.changes[1].low <= text.changes[1].difference <= text.changes[1].high < 0


def test_measures_follow_the_stage_that_each_was_trained_from(report):
    asr, text = report.tasks
    both = report.measures["all"]
    for stage in (1, 2):
        mean = (text.scores[stage].value + asr.scores[stage].value) / 2
        assert both["average"][stage] == pytest.approx(mean)
        drop = text.scores[0].value - text.scores[stage].value
        assert report.measures["text to text"]["forgetting"][stage] == pytest.approx(drop)
        assert report.measures["text to text"]["backward_transfer"][stage] == pytest.approx(-drop)
    assert np.isnan(both["backward_transfer"][0])
    # "with replay" teaches the transcripts as "speech" does, from the same base.
    assert both["backward_transfer"][2] == report.measures["text to text"]["backward_transfer"][2]
    assert np.isnan(report.measures["speech to text"]["forgetting"][2])


def test_a_worse_error_rate_is_forgetting(folder):
    config = dataclasses.replace(read_config(as_path(folder / "forgetting.yml")), tasks=[])
    worse = make_report(config, make_columns(config, [answers(1), answers(0), answers(1)]))
    assert worse.tasks[0].changes[1].difference < -0.5
    assert worse.measures["speech to text"]["forgetting"][1] > 0.5


def test_a_stage_that_equals_the_base(folder):
    config = read_config(as_path(folder / "forgetting.yml"))
    same = make_report(config, make_columns(config, [answers(0), answers(0), answers(0)]))
    for task in same.tasks:
        for changed in task.changes:
            assert changed.difference == 0 and changed.retained == 1 and changed.low == changed.high == 0
    assert (same.tasks[1].changes[1].forgotten, same.tasks[1].changes[1].learned) == (0, 0)


def test_text_is_set_against_speech(report):
    asr, text = report.tasks
    points = trade_off(report)
    assert [name for name, _, _ in points] == list(STAGES)
    for stage, (_, on_text, on_speech) in enumerate(points):
        assert (on_text, on_speech) == pytest.approx((text.scores[stage].value, asr.scores[stage].value))


def test_the_command(folder, tmp_path, capsys):
    forgetting.main(["report", str(folder / "forgetting.yml"), "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "| text | text to text | test |" in shown and "backward_transfer" in shown
    stored = json.loads((tmp_path / "out" / "forgetting.json").read_text())
    assert stored["stages"] == list(STAGES) and stored["tasks"][1]["scores"][0]["count"] == NUM_ITEMS
    page = (tmp_path / "out" / "index.html").read_text()
    assert "with replay" in page and page.count("<circle") == 3 and "<script" not in page and "http" not in page
    assert (tmp_path / "out" / "forgetting.md").read_text().startswith("# Forgetting")


def changed(predictions, **fields):
    """Returns predictions of which the first has other fields."""
    return [dataclasses.replace(predictions[0], **fields), *predictions[1:]]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (changed(answers(1), prompt="Another?"), "text: questions/t0 has another prompt in speech than in base"),
        (changed(answers(1), references=["e"]), "text: questions/t0 has another references in speech than in base"),
        (answers(1)[1:], "text: base answered questions/t0 and speech did not; evaluate both on the same rows"),
    ],
)
def test_stages_that_were_asked_other_questions_are_not_compared(folder, second, message):
    config = read_config(as_path(folder / "forgetting.yml"))
    with pytest.raises(UserError) as refused:
        make_columns(config, [answers(0), second, answers(2)])
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": CONFIG["stages"][:1]}, "stages="),
        ({"stages": [*CONFIG["stages"], CONFIG["stages"][0]]}, "has two stages of one name"),
        (
            {"stages": [CONFIG["stages"][0], {"name": "x", "after": "y", "evaluations": ["e"]}]},
            "unknown stage in stages[1]",
        ),
        (
            {"tasks": [{"task": "text", "taught": "speeech"}]},
            "unknown stage in tasks[0].taught 'speeech'; did you mean 'spee",
        ),
        ({"tasks": [{"task": "text", "chance": 1}]}, "tasks.0.chance=1: must be less than 1"),
        ({"tasks": [{"task": "text", "weight": 1}]}, "unknown configuration field 'tasks.0.weight'"),
        ({"tasks": [{"task": "txt"}]}, "tasks: no stage has predictions of 'txt'"),
        ({"tasks": [{"task": "text", "metric": "wer"}]}, "unknown metric of the task text 'wer'"),
    ],
)
def test_a_wrong_configuration_is_one_line(folder, tmp_path, monkeypatch, capsys, changes, message):
    for name in ("base", "speech", "replay"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "forgetting.yml").write_text(yaml.safe_dump(CONFIG | changes))
    words = ["forgetting", "report", str(tmp_path / "forgetting.yml"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as refused:
        cli.run(forgetting.main)
    error = capsys.readouterr().err
    assert refused.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
