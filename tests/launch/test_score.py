"""`launch.score` on one file of every task, without JAX, and its options."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from launch import cli
from launch import score as launch_score
from launch.score import read_evaluation, score
from salmonn_jax.errors import UserError
from salmonn_jax.evaluation import report, tasks
from salmonn_jax.evaluation.metrics import captions
from salmonn_jax.evaluation.predictions import read_predictions
from salmonn_jax.evaluation.scoring import intervals
from salmonn_jax.evaluation.scoring import judge as judge_module
from salmonn_jax.paths import as_path
from tests.evaluation.test_judge import server  # noqa: F401  a fixture

EVERY_TASK = pathlib.Path(__file__).parent.parent / "evaluation" / "every_task.jsonl"
EXTRA_PACKAGES = ("sacrebleu", "MeCab", "rouge_score", "kaldialign", "zhconv", "whisper_normalizer")

# task -> metric -> value, computed by hand; None: not computed, as there is no Java on the PATH of the test.
EXPECTED = {
    # 9 words right; "101 dogs" for "101 cats": 1 of 2; a loop of 60 words for "a word": 58 insertions, 1 substitution;
    # an error and an empty answer: 2 deletions each.
    "asr": {"wer": (1 + 59 + 2 + 2) / (9 + 2 + 2 + 2 + 2)},
    "asr_zh": {"cer": 1 / 6},
    "asr_de": {"wer": 0.0},
    "translation_ec": {"bleu": 100.0, "bleu_char": 100.0},
    "translation_en2de": {"bleu": 100.0},
    "translation_en2ja": {"bleu": 100.0, "bleu_char": 100.0},
    "audiocaption": {"meteor": None, "cider": None, "spice": None, "spider": None, "rouge_l": 1.0},
    "audiocaption_v2": {"meteor": None, "cider": None, "spice": None, "spider": None, "rouge_l": 1.0},
    "QA": {"accuracy": 1.0, "rouge_l": 2 * 1 * (3 / 5) / (1 + 3 / 5)},
    "inference_QA": {"accuracy": 1.0, "rouge_l": 2 * 1 * (4 / 7) / (1 + 4 / 7)},
    "gender_QA": {"accuracy": 1.0, "balanced_accuracy": 1.0},
    "gender_recognition": {"accuracy": 1 / 2, "balanced_accuracy": 1 / 2},
    "phone_recognition": {"per": 0.0},
    "speech_separation": {"pi_wer": 0.0},
    "emotion_recognition": {"accuracy": 1 / 2, "balanced_accuracy": 1 / 2},
    "music_description": {"bleu": 100.0, "rouge_l": 1.0},
    "speaker_verification": {"accuracy": 1 / 2, "balanced_accuracy": 1 / 2},
    "audio_story_telling": {"diversity": 33.0, "following_rate": 1.0},
    "speaker_diarization_asr": {"pi_wer": 0.0},
    "keywords": {"accuracy": 2 / 3},
    "speech_query": {"accuracy": 1 / 2, "following_rate": 1 / 2},
    "slot_filling": {"accuracy": 1.0, "following_rate": 1.0},
    "speech_audio_query": {"accuracy": 1.0, "following_rate": 1.0},
    "speech_audio_coreasoning": {"accuracy": 1.0, "following_rate": 1.0},
    "lyrics_recognition": {"wer": 0.0},
    "audio_speech_description": {"rouge_l": 1.0, "bleu": 100.0},
    "fluent_speech_audio": {"rouge_l": 1.0, "bleu": 100.0},
    "numbers": {"wer": 1 / 4},
    "numbers_to_english": {"wer": 0.0},
    "transcribe": {"wer": 0.0},
    "translate": {"wer": 1 / 2},
    "sound": {"accuracy": 1.0},
    "instrument": {"accuracy": 0.0},
    "metre": {"accuracy": 1.0},
    "tune_type": {"accuracy": 0.0},
    "speech_over_sound": {"wer": 0.0, "accuracy": 0.0},
    "text": {"accuracy": 1.0},
    "birds": {"accuracy": 1 / 2},
    "my_translation": {"bleu": 100.0},
}
OWN_TASKS = {"birds", "my_translation"}  # with a generic metric


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Hides Java, with which METEOR takes 20 seconds, and draws few resamples."""
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


@pytest.fixture
def evaluation(tmp_path) -> pathlib.Path:
    """Returns a directory with the predictions of every task."""
    directory = tmp_path / "evaluation"
    directory.mkdir()
    shutil.copy(EVERY_TASK, directory / "predictions.jsonl")
    return directory


def saved(directory: pathlib.Path) -> dict:
    return json.loads((directory / "scores.json").read_text("utf-8"))


def row_of(directory: pathlib.Path, task: str, metric: str) -> dict:
    (row,) = [row for row in saved(directory)["rows"] if (row["task"], row["metric"]) == (task, metric)]
    return row


def test_the_file_has_every_task():
    assert set(EXPECTED) == set(tasks.task_names()) | OWN_TASKS == {p.task for p in read_predictions(EVERY_TASK)}
    assert sum(p.source == "every_task" for p in read_predictions(EVERY_TASK)) > len(EXPECTED)


def test_every_task_is_scored_end_to_end_without_jax(evaluation, tmp_path):
    for package in EXTRA_PACKAGES:
        pytest.importorskip(package)
    hidden = "import sys; sys.modules.update(jax=None, jaxlib=None, flax=None)"
    code = f"{hidden}; from launch import cli, score; cli.run(score.main)"
    command = [sys.executable, "-c", code, str(evaluation)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    scores = saved(evaluation)
    values = {}
    for row in scores["rows"]:
        values.setdefault(row["task"], {})[row["metric"]] = row["audio"]["value"]
        assert row["protocol"].startswith("salmonn_jax/") and row["protocol"].partition("@")[2].isdigit()
        assert "not installed" not in row["settings"].values() or row["audio"]["value"] is None
    assert {task: list(metrics) for task, metrics in values.items()} == {t: list(m) for t, m in EXPECTED.items()} | {}
    for task, metrics in EXPECTED.items():
        assert values[task] == pytest.approx(metrics), task
    (asr,) = [f for f in scores["failures"] if f["task"] == "asr"]
    counted = {name: asr[name] for name in ("clips", "errors", "empty", "cut", "loops", "unparseable")}
    assert counted == {"clips": 6, "errors": 1, "empty": 1, "cut": 1, "loops": 1, "unparseable": 0}
    unparseable = {f["task"]: f["unparseable"] for f in scores["failures"] if f["unparseable"]}
    assert unparseable == {"gender_recognition": 1, "emotion_recognition": 1, "speaker_verification": 1, "birds": 1}
    assert row_of(evaluation, "asr", "wer")["audio"]["unscorable"] == 1  # the reference "?!"
    assert row_of(evaluation, "sound", "accuracy")["audio"]["unscorable"] == 1
    published = {(v["task"], v["metric"], v["value"], v["protocol"]) for v in scores["published"]}
    assert ("asr", "WER", 2.1, "not stated") in published
    assert "asr WER: 2.1 % on LibriSpeech test-clean, SALMONN 13B" in done.stdout
    assert "not computed: needs the program java" in done.stdout
    assert "salmonn_jax/asr-en@1 (normalizer whisper-english-folded, jiwer" in done.stdout
    assert "matches" not in done.stdout + (evaluation / "index.html").read_text("utf-8")


def test_the_clips_of_an_existing_page_stay(evaluation, capsys):
    page = evaluation / "index.html"
    score(evaluation)
    assert "without clips" in capsys.readouterr().out
    scores = page.read_text("utf-8").partition(report.BEGIN_SCORES)[2].partition(report.END_SCORES)[0]
    player = '<audio controls src="data:audio/flac;base64,AAAA"></audio>'
    page.write_text(
        page.read_text("utf-8").replace(scores, "old scores").replace("</main>", player + "</main>"), "utf-8"
    )
    score(evaluation)
    assert "the rest of the page stays" in capsys.readouterr().out
    renewed = page.read_text("utf-8")
    assert player in renewed and "old scores" not in renewed and renewed.count(report.BEGIN_SCORES) == 1
    score(evaluation, evaluation / "again", protocols={"sound": "contains"})
    assert player in (evaluation / "again" / "index.html").read_text("utf-8")
    assert page.read_text("utf-8") == renewed


def test_errors_count_as_wrong_unless_they_are_excluded(evaluation, capsys):
    score(evaluation)
    wrong = row_of(evaluation, "asr", "wer")["audio"]
    assert saved(evaluation)["errors"] == "wrong" and "excluded" not in capsys.readouterr().out
    score(evaluation, exclude_errors=True)
    excluded = row_of(evaluation, "asr", "wer")["audio"]
    assert (wrong["count"], excluded["count"]) == (5, 4)
    assert excluded["value"] == pytest.approx((wrong["value"] * 17 - 2) / 15)
    assert excluded["notes"] == ["1 predictions with an error are excluded"]
    assert saved(evaluation)["errors"] == "excluded"
    assert "excluded: 1 predictions with an error" in capsys.readouterr().out


def test_options_of_the_command_line(evaluation, capsys, monkeypatch):
    words = ["--protocol", "asr=asr-en-plain@1", "sound=contains", "--by", "speaker", "--compare", str(evaluation)]
    monkeypatch.setattr(sys, "argv", ["score", str(evaluation), "--output", str(evaluation / "new"), *words])
    cli.run(launch_score.main)
    assert {row["protocol"] for row in saved(evaluation / "new")["rows"] if row["task"] in ("asr", "sound")} == {
        "salmonn_jax/asr-en-plain@1",
        "salmonn_jax/contains@1",
    }
    assert {row["part"] for row in saved(evaluation / "new")["rows"]} == {"", "Ses05F"}
    comparisons = saved(evaluation / "new")["comparisons"]
    assert all(c["difference"] in (0.0, None) and c["left_out"] == 0 for c in comparisons)
    assert not (evaluation / "scores.json").exists()
    agreement = saved(evaluation / "new")["agreement"]
    assert all(row["identical"] == row["count"] and row["largest_score_gap"] == 0 for row in agreement)
    printed = capsys.readouterr().out
    assert f"compared with {evaluation}:" in printed and f"agreement with {evaluation}:" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "asr"], "--protocol asr: must be TASK=NAME"),
        (["--protocol", "asr=asr-fr@1"], "unknown protocol of the task asr 'asr-fr@1'"),
        (["--protocol", "diarization=wer"], "--protocol diarization=wer: there is no prediction of this task"),
        (["--by", "accent"], "--by accent: no prediction has it; it must be one of: source, language, speaker"),
        (["--judge", "http://localhost:1/v1"], "--judge and --judge-model must be given together"),
        (["--compare", "gone"], "gone has no predictions.jsonl"),
        (["--protocol", "asr=wer", "asr=cer"], "--protocol names the task asr twice; omit one"),
        (["--output", __file__], "cannot be written to: File exists; choose another directory with --output"),
        (["--output", f"{__file__}/x"], "cannot be written to: Not a directory; choose another directory with"),
    ],
)
def test_wrong_options_are_one_line(evaluation, words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["score", str(evaluation), *words])
    with pytest.raises(SystemExit) as stopped:
        cli.run(launch_score.main)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (evaluation / "scores.json").exists()


def test_the_judge_is_asked_only_if_it_is_named(evaluation, server, capsys):  # noqa: F811
    score(evaluation)
    assert server.requests == [] and "judge" not in capsys.readouterr().err
    score(evaluation, judge=server.address, judge_model="model-a")
    row = row_of(evaluation, "text", "judge")
    assert (row["protocol"], row["settings"], row["audio"]["count"]) == ("salmonn_jax/judge@1", {"judge": "model-a"}, 1)
    judged = [p for p in read_predictions(EVERY_TASK) if judge_module.is_judged(p)]
    assert len(server.requests) == len(judged) == 8
    error = capsys.readouterr().err
    assert "judge: sends prompt, transcript, references and answer of 8 predictions (QA, " in error
    assert f"to {server.address}, but no audio, id or path" in error
    assert error.count("\n") == 1


def test_an_unfinished_evaluation_is_scored_with_a_warning(evaluation, capsys):
    (evaluation / "predictions.jsonl").rename(evaluation / "predictions-0.jsonl")
    score(evaluation)
    assert "is not finished; these are scores of what it has so far" in capsys.readouterr().err


def test_a_directory_without_predictions_raises_user_error(tmp_path):
    with pytest.raises(UserError, match=r"has no predictions\.jsonl; run launch.evaluate"):
        score(tmp_path)


def test_an_answer_takes_the_place_of_an_error_with_its_key(evaluation):
    lines = [json.loads(line) for line in EVERY_TASK.read_text("utf-8").splitlines()]
    (failed,) = [line for line in lines if line.get("error")]
    answer = failed | {"error": "", "prediction": "a word", "finish_reason": "stop"}
    for name in ("predictions-0.jsonl", "predictions-1.jsonl"):  # before and after the file with the error
        (evaluation / name).write_text(json.dumps(answer) + "\n", "utf-8")
        read = [p for p in read_evaluation(evaluation) if p.key == failed["key"]]
        assert [(p.prediction, p.error) for p in read] == [("a word", "")]


def test_an_evaluation_in_a_bucket(bucket, server):  # noqa: F811
    directory = as_path("gs://lab/evaluation")
    (directory / "predictions.jsonl").write_text(EVERY_TASK.read_text("utf-8"))
    score(directory, judge=server.address, judge_model="model-a")
    scores = json.loads((directory / "scores.json").read_text())
    assert len(scores["rows"]) > len(EXPECTED)
    assert len((directory / "judge.jsonl").read_text().splitlines()) == 8
    score(directory)
    assert report.END_SCORES in (directory / "index.html").read_text()
