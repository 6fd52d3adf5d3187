"""The gate: verdicts and exit codes."""

from __future__ import annotations

import json

import pytest
import yaml

from launch import cli, forgetting
from salmonn_jax.forgetting.measurement.gate import GateConfig, Rule, Verdict, judge
from salmonn_jax.forgetting.measurement.stages import ForgettingConfig, Stage, make_columns
from tests.evaluation.answers import make_prediction
from tests.forgetting.test_report import write_evaluation

CONFIG = ForgettingConfig(stages=[Stage(name=name, evaluations=[name]) for name in ("base", "candidate")])
TEXT = {"audio_seconds": 0.0, "windows": [], "prompt": "Which?", "task": "text"}


def answers(num_right: int, count: int, *, group=None) -> list:
    """Returns answers to text questions, of which the first ones are right."""
    return [
        make_prediction(
            reference="yes", prediction="yes" if i < num_right else "no", id=str(i), group=group or {}, **TEXT
        )
        for i in range(count)
    ]


def verdict(before, after, *, rules=None, **fields) -> tuple[Verdict, list[str]]:
    """Returns the verdict about the answers of a candidate, and the reasons."""
    rules = rules or [Rule(task="text", margin=0.02)]
    gate = GateConfig(stages="forgetting.yml", candidate="candidate", rules=rules, **fields)
    found, outcomes = judge(gate, CONFIG, make_columns(CONFIG, [before, after]))
    return found, [outcome.reason for outcome in outcomes]


@pytest.mark.parametrize(
    ("before", "after", "count", "expected"),
    [
        (700, 700, 1000, Verdict.PASS),
        (700, 705, 1000, Verdict.PASS),
        (700, 695, 1000, Verdict.PASS),  # 0.5 points, upper bound of the loss below 2
        (700, 685, 1000, Verdict.INCONCLUSIVE),
        (700, 600, 1000, Verdict.FAIL),
        (20, 20, 20, Verdict.INCONCLUSIVE),  # no change, but too few items to exclude two points
        (20, 5, 20, Verdict.FAIL),
    ],
)
def test_a_rule_is_about_the_bounds_of_the_difference(before, after, count, expected):
    found, (reason,) = verdict(answers(before, count), answers(after, count))
    assert found is expected, reason
    assert f"{count} items" in reason and "-2.0 allowed" in reason


@pytest.mark.parametrize(
    ("num_right", "expected"), [(900, Verdict.PASS), (500, Verdict.FAIL), (805, Verdict.INCONCLUSIVE)]
)
def test_an_absolute_rule(num_right, expected):
    rules = [Rule(task="text", at_least=0.8)]
    assert verdict(answers(900, 1000), answers(num_right, 1000), rules=rules)[0] is expected


def test_one_failure_decides_and_a_model_in_use_is_rolled_back():
    rules = [Rule(task="text", margin=0.5), Rule(task="text", at_least=0.9)]
    assert verdict(answers(900, 1000), answers(700, 1000), rules=rules)[0] is Verdict.FAIL
    assert verdict(answers(900, 1000), answers(700, 1000), rules=rules, in_use=True)[0] is Verdict.ROLLBACK
    assert verdict(answers(900, 1000), answers(990, 1000), rules=rules, in_use=True)[0] is Verdict.PASS


def test_what_is_not_measured_fails():
    found, (reason,) = verdict(answers(9, 10), [], rules=[Rule(task="text", margin=0.5)])
    assert found is Verdict.FAIL and reason == "text: candidate was not measured"
    found, (reason,) = verdict(answers(9, 10), answers(9, 10), rules=[Rule(task="asr", margin=0.5)])
    assert found is Verdict.FAIL and reason == "asr: not measured"
    found, (reason,) = verdict(answers(9, 10), [], rules=[Rule(task="text", at_least=0.5)])
    assert found is Verdict.FAIL and reason == "text: not measured"
    two = [
        *answers(9, 10),
        *[make_prediction(task="text", reference="y", prediction="y", id=f"s{i}") for i in range(9)],
    ]
    found, (reason,) = verdict(two, two)
    assert found is Verdict.FAIL and "is measured more than once" in reason
    assert verdict(two, two, rules=[Rule(task="text", margin=0.5, channel="text to text")])[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("found", "expected"),
    [(["3f2a"], Verdict.PASS), (["3f2a", "77"], Verdict.FAIL), (["77"], Verdict.FAIL), ([""], Verdict.FAIL)],
)
def test_an_evaluation_of_another_model_fails(found, expected):
    same, rules = answers(900, 1000), [Rule(task="text", margin=0.02)]
    gate = GateConfig(stages="s", candidate="candidate", rules=rules, fingerprints={"base": "3f2a"})
    outcome, outcomes = judge(gate, CONFIG, make_columns(CONFIG, [same, same]), {"base": found})
    assert outcome is expected
    assert expected is Verdict.PASS or "evaluate again" in outcomes[0].reason


def test_items_of_one_speaker_have_no_interval():
    one = {"group": {"speaker": "1089"}}
    assert verdict(answers(90, 100, **one), answers(90, 100, **one))[0] is Verdict.INCONCLUSIVE


def test_word_error_rates_are_compared_by_resampling():
    def heard(num_wrong):
        words = [f"w{i}" for i in range(10)]
        return [
            make_prediction("asr", " ".join(words), " ".join(words[num_wrong if i % 2 else 0 :]), id=str(i))
            for i in range(200)
        ]

    rules = [Rule(task="asr", margin=0.05)]
    assert verdict(heard(2), heard(2), rules=rules)[0] is Verdict.PASS
    assert verdict(heard(2), heard(4), rules=rules)[0] is Verdict.FAIL
    assert verdict(heard(2), heard(3), rules=rules)[0] is Verdict.INCONCLUSIVE
    assert verdict(heard(4), heard(2), rules=rules)[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("num_right", "in_use", "code"), [(900, False, 0), (500, False, 2), (886, False, 3), (500, True, 4)]
)
def test_exit_codes(tmp_path, monkeypatch, capsys, num_right, in_use, code):
    write_evaluation(tmp_path / "base", answers(900, 1000))
    write_evaluation(tmp_path / "candidate", answers(num_right, 1000))
    stages = {"stages": [{"name": name, "evaluations": [name]} for name in ("base", "candidate")]}
    (tmp_path / "forgetting.yml").write_text(yaml.safe_dump(stages))
    gate = {"stages": "forgetting.yml", "candidate": "candidate", "in_use": in_use}
    (tmp_path / "gate.yml").write_text(yaml.safe_dump(gate | {"rules": [{"task": "text", "margin": 0.02}]}))
    monkeypatch.setattr("sys.argv", ["forgetting", "gate", str(tmp_path / "gate.yml")])
    with pytest.raises(SystemExit) as ended:
        cli.run(forgetting.main)
    assert ended.value.code == code
    assert list(Verdict)[[0, 2, 3, 4].index(code)].name in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate": "candidat"}, "unknown stage in candidate 'candidat'; did you mean 'candidate'?"),
        ({"candidate": "base"}, "rules[0]: compares base with itself; set against to another stage"),
        ({"rules": [{"task": "text"}]}, "rules.0.margin: give either margin or at_least"),
        ({"rules": [{"task": "text", "margin": 2}]}, "rules.0.margin=2"),
        ({"rules": []}, "rules=[]"),
        ({"rule": []}, "unknown configuration field 'rule'; did you mean 'rules'?"),
        ({"stages": "absent.yml"}, "absent.yml does not exist"),
        ({"fingerprints": {"bas": "x"}}, "unknown stage in fingerprints 'bas'"),
    ],
)
def test_a_wrong_gate_is_one_line(tmp_path, monkeypatch, capsys, changes, message):
    for name in ("base", "candidate"):
        write_evaluation(tmp_path / name, answers(9, 10))
    stages = {"stages": [{"name": name, "evaluations": [name]} for name in ("base", "candidate")]}
    (tmp_path / "forgetting.yml").write_text(yaml.safe_dump(stages))
    gate = {"stages": "forgetting.yml", "candidate": "candidate", "rules": [{"task": "text", "margin": 0.02}]}
    (tmp_path / "gate.yml").write_text(yaml.safe_dump(gate | changes))
    monkeypatch.setattr("sys.argv", ["forgetting", "gate", str(tmp_path / "gate.yml")])
    with pytest.raises(SystemExit) as refused:
        cli.run(forgetting.main)
    error = capsys.readouterr().err
    assert refused.value.code == 2 and message in error and error.count("\n") == 1


def test_stages_that_were_decoded_differently_are_refused(tmp_path, monkeypatch, capsys):
    for name, template in (("base", "USER: {}"), ("candidate", "{}")):
        write_evaluation(tmp_path / name, answers(9, 10))
        settings = {"prompt_template": template, "model.fingerprint": name}
        (tmp_path / name / "run.json").write_text(json.dumps({"format": 1, "settings": settings, "sessions": []}))
    stages = {"stages": [{"name": name, "evaluations": [name]} for name in ("base", "candidate")]}
    (tmp_path / "forgetting.yml").write_text(yaml.safe_dump(stages))
    words = ["forgetting", "report", str(tmp_path / "forgetting.yml"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        cli.run(forgetting.main)
    assert "was made with prompt_template='{}', and" in capsys.readouterr().err
