"""`launch.evaluate` on wrong input: settings, options, manifests and files that are refused or counted as errors."""

from __future__ import annotations

import json
import re
import sys

import jax
import pytest

import salmonn_jax
from salmonn_jax.evaluation.lock import exclusive
from salmonn_jax.evaluation.predictions import read_predictions
from salmonn_jax.model_directory import open_model
from tests.launch.evaluations import SOUNDS, write
from tests.runs import copy_run


def test_files_that_cannot_be_used_are_counted_as_wrong(evaluate, folder, capsys):
    (folder / "2.wav").write_bytes(b"no audio")
    words = ["--manifest", write(folder / "m.jsonl", SOUNDS)]
    assert evaluate(folder / "e", *words, "--no-preflight") == 2
    assert "4 predictions, 1 failed (undecodable 1)" in capsys.readouterr().err
    (row,) = json.loads((folder / "e" / "scores.json").read_text())["rows"]
    assert row["audio"]["count"] == 4
    assert evaluate(folder / "strict", *words, "--max-failures", 0) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: 1 predictions failed, more than --max-failures 0; the last is that of 's2': undec")


def test_missing_files_are_refused_or_accepted_as_errors(evaluate, folder, capsys):
    lines = [*SOUNDS, SOUNDS[0] | {"id": "m", "audio": "gone.wav"}, SOUNDS[0] | {"id": "n", "audio": "away.wav"}]
    words = ["--manifest", write(folder / "m.jsonl", lines)]
    assert evaluate(folder / "e", *words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        f"error: missing audio files: 2, the first is {folder}/gone.wav; correct the manifest, or accept them as "
        "errors with --max-failures 2"
    )
    assert not (folder / "e").exists()
    assert evaluate(folder / "e", *words, "--max-failures", 1) == 2
    assert evaluate(folder / "e", *words, "--max-failures", 2, "--no-preflight") == 2
    predictions = read_predictions(folder / "e" / "predictions.jsonl")
    assert sorted((p.id, p.finish_reason) for p in predictions if p.error) == [("m", "error"), ("n", "error")]
    assert len(predictions) == 6


def test_an_empty_manifest_has_no_predictions(evaluate, folder, capsys):
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", [])) == 0
    assert (folder / "e" / "predictions.jsonl").read_bytes() == b""
    assert "the data sets have no rows; there is nothing to score" in capsys.readouterr().err


FIELD_CASES = {
    # field case 14: found before the first prediction, named by line
    "exact_duplicate": ([*SOUNDS, SOUNDS[0]], r"line 5 of .* and line 1 of .* have the same id 's0'"),
    "same_id": ([*SOUNDS, SOUNDS[1] | {"answer": "bells"}], r"line 5 of .* and line 2 of .* have the same id 's1'"),
    # field case 16: unknown tasks and metrics, before the first prediction
    "unknown_task": ([SOUNDS[0] | {"task": "sounds"}], r"line 1 of .*: unknown task 'sounds'; did you mean 'sound'\?"),
    "unknown_metric": ([SOUNDS[0] | {"metric": "werr"}], r"line 1 of .*: unknown metric 'werr'"),
}


@pytest.mark.parametrize("name", FIELD_CASES)
def test_faults_of_a_manifest_are_found_before_the_model_is_loaded(evaluate, folder, capsys, monkeypatch, name):
    lines, message = FIELD_CASES[name]
    monkeypatch.setattr(salmonn_jax, "load", lambda *_, **__: pytest.fail("the model is loaded"))
    assert evaluate(folder / "e", "--manifest", write(folder / "mine.test.jsonl", lines)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and re.search(message, told)
    assert not (folder / "e").exists()


def test_lines_that_cannot_be_used_are_told_and_the_rest_goes_on(evaluate, folder, capsys):
    """Field case 9: a lone surrogate in a line."""
    path = write(folder / "m.jsonl", SOUNDS)
    with path.open("a") as file:
        file.write('{"id": "u", "audio": "1.wav", "answer": "party \\ud83c", "task": "sound", "prompt": "What?"}\n')
    assert evaluate(folder / "e", "--manifest", path, "--no-preflight") == 2
    told = capsys.readouterr().err
    assert "line 5 of" in told and "1 rows cannot be used and have no prediction" in told
    assert len(read_predictions(folder / "e" / "predictions.jsonl")) == 4
    (source,) = json.loads((folder / "e" / "run.json").read_text())["sources"]
    assert source["rows"] == 5 and len(source["rejected"]) == 1
    assert evaluate(folder / "f", "--manifest", path, "--max-failures", 0) == 2
    assert "1 rows cannot be used, more than --max-failures 0" in capsys.readouterr().err


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test if weights are loaded."""

    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(salmonn_jax, "load", load)


def test_other_settings_are_refused(evaluate, folder, capsys, request):
    words = ["--manifest", write(folder / "m.jsonl", SOUNDS), "--no-preflight"]
    assert evaluate(folder / "e", *words) == 0
    capsys.readouterr()
    assert evaluate(folder / "e", *words, "--batch-size", 1) == 0  # changes no answer
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (folder / "e").iterdir()}
    request.getfixturevalue("no_weights")
    assert evaluate(folder / "e", *words, "--max-new-tokens", "5", "--num-beams", "1", greedy=False) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "was made with generation_config.max_new_tokens=4, not 5; choose another --output" in told
    assert evaluate(folder / "e", *words, "--channels", "mean") == 2
    assert 'was made with channels="first", not "mean"' in capsys.readouterr().err
    assert evaluate(folder / "e", *words, "--conditions", "silence") == 2
    assert 'was made with conditions=["audio"], not ["silence"]' in capsys.readouterr().err
    write(folder / "other.jsonl", SOUNDS)
    assert evaluate(folder / "e", *words[:-1], "--manifest", folder / "other.jsonl") == 2
    assert 'was made with sources=["m/test"], not ["m/test", "other/test"]' in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (folder / "e").iterdir()} == before


def test_an_evaluation_of_another_model_is_refused(evaluate, folder, debug_run, capsys, monkeypatch, no_weights):
    """An earlier checkpoint of the same run is another model."""
    from launch.answering import open_sources
    from launch.evaluate import Options
    from launch.evaluate import evaluate as run
    from salmonn_jax.config import GenerationConfig
    from salmonn_jax.errors import UserError
    from salmonn_jax.evaluation import run_file, settings

    earlier = copy_run(debug_run, folder / "run", last_step=4)
    options = Options()
    sources, _ = open_sources([write(folder / "m.jsonl", SOUNDS)], None, None, None, options.channels)
    config = GenerationConfig(num_beams=1, max_new_tokens=4)
    model_settings = settings.evaluation_settings(open_model(debug_run), debug_run, config, "error", "first")
    model_settings |= {"conditions": ["audio"], "sources": ["m/test"]}
    run_file.write_run(folder / "e", settings=model_settings, sources=[], session={})
    with pytest.raises(AssertionError, match="weights were loaded"):
        run(debug_run, folder / "e", sources, config, options)
    with pytest.raises(UserError, match=r'was made with model\.fingerprint="[0-9a-f]{64}", not "[0-9a-f]{64}"; choose'):
        run(earlier, folder / "e", sources, config, options)


def test_the_fingerprint_is_known_before_the_weights_are_loaded(debug_run):
    files = open_model(debug_run)
    assert files.delta_path.parent.name == "6" and files.fingerprint == salmonn_jax.load(debug_run).fingerprint


def test_a_new_checkpoint_while_the_model_is_loaded_is_one_line(evaluate, folder, debug_run, capsys, monkeypatch):
    earlier = salmonn_jax.load(copy_run(debug_run, folder / "run", last_step=4))
    monkeypatch.setattr(salmonn_jax, "load", lambda *args, **kwargs: earlier)
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", SOUNDS)) == 2
    assert "has got another checkpoint while it was loaded; run the same" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "e" / "run.json").exists()


def test_two_jobs_do_not_write_to_one_directory(evaluate, folder, capsys, no_weights):
    with exclusive(folder / "e"):
        assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", SOUNDS)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told == f"error: another job writes to {folder}/e; wait for its end, or choose another --output"
    assert list((folder / "e").iterdir()) == []


def test_an_output_that_cannot_be_written_is_one_line(evaluate, folder, capsys, no_weights):
    manifest = write(folder / "m.jsonl", SOUNDS)
    for output, reason in ((manifest, "File exists"), (manifest / "e", "Not a directory"), ("/proc/e", "No such file")):
        assert evaluate(output, "--manifest", manifest) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert told.startswith(f"error: {output} cannot be written to: {reason}")


def test_a_model_directory_is_no_output(evaluate, folder, debug_run, capsys, no_weights):
    before = sorted(path.name for path in debug_run.iterdir())
    assert evaluate(debug_run, "--manifest", write(folder / "m.jsonl", SOUNDS)) == 2
    assert "is a model or run directory; choose another --output" in capsys.readouterr().err
    assert sorted(path.name for path in debug_run.iterdir()) == before


def test_a_url_that_needs_a_package_is_told(evaluate, folder, capsys, no_weights):
    lines = [*SOUNDS, SOUNDS[0] | {"id": "u", "audio": "ftps://host/a.wav"}]
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", lines)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: missing audio files: 1, the first is ftps://host/a.wav: unknown scheme 'ftps'")


@pytest.mark.parametrize(("name", "value"), [("settings", None), ("sessions", "x")])
def test_a_damaged_run_file_is_one_line(evaluate, folder, capsys, no_weights, name, value):
    (folder / "e").mkdir()
    content = {"format": 1, "settings": {}, "sessions": []} | {name: value}
    (folder / "e" / "run.json").write_text(json.dumps(content))
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", SOUNDS)) == 2
    assert f"run.json is damaged: {name} is missing or of another type" in capsys.readouterr().err


def test_metrics_that_cannot_be_computed_are_told_first(evaluate, folder, capsys, monkeypatch, no_weights):
    monkeypatch.setattr("shutil.which", lambda name: None)  # no Java
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    tasks = ("audiocaption", "translation_en2de", "sound")
    lines = [line | {"task": task} for line, task in zip(SOUNDS, tasks, strict=False)]
    with pytest.raises(AssertionError, match="weights were loaded"):
        evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", lines))
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: some scores will not be computed here: audiocaption meteor, audiocaption cider, ")
    assert "audiocaption spider (needs the program java; install a Java runtime); translation_en2de bleu (this" in told
    assert "pip install 'salmonn-jax[score]'" in told and "sound" not in told
    assert told.endswith("The predictions are made all the same; launch.score scores them later")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mesh", "tensor"], "--mesh tensor: must be AXIS=SIZE"),
        (["--mesh", "tensor=0"], "--mesh tensor=0: must be AXIS=SIZE with a size of at least 1"),
        (["--mesh", "tensor=2", "tensor=4"], "--mesh tensor=4: the axis tensor is given twice"),
        (["--mesh", "tensor=3"], "--mesh tensor=3 has 3 devices, but each process has 8; the sizes must divide them"),
        (["--mesh", "data=4"], "--mesh data=4 has 4 devices, but each process has 8"),
        (["--mesh", "tensr=4"], "unknown mesh axis 'tensr'; did you mean 'tensor'?"),
        (["--batch-size", "0"], "--batch-size: '0': must be a whole number of at least 1"),
        (["--max-failures", "-1"], "--max-failures: '-1': must be a whole number of at least 0"),
        (["--corpus", "tones"], "--corpus is not used with --manifest"),
        (["--max-new-tokens", "64"], "--max-new-tokens 64: must be below 64, the tokens of the language model's"),
        (["--num-beams", "0"], "num_beams=0: must be greater than 0"),
        (["--conditions", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_wrong_options_are_one_line(evaluate, folder, capsys, words, message):
    assert jax.device_count() == 8
    manifest = write(folder / "m.jsonl", SOUNDS)
    assert evaluate(folder / "e", "--manifest", manifest, *words, greedy=False) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and message in told
    assert not (folder / "e").exists()


def test_preflight_stops_a_model_without_ears(evaluate, folder, debug_run, capsys, monkeypatch):
    """The Q-Former of the model returns zeros, so its answers depend on the prompt alone."""
    load = salmonn_jax.load

    def load_deaf(*args, **kwargs):
        model = load(*args, **kwargs)
        model.module.encode_audio = lambda pcm, length: 0 * type(model.module).encode_audio(model.module, pcm, length)
        return model

    monkeypatch.setattr(salmonn_jax, "load", load_deaf)
    segments = [{"path": f"{k}.wav", "start": start} for k in range(4) for start in (0.0, 0.1, 0.2, 0.3)]
    lines = [SOUNDS[i // 4] | {"id": f"{i}", "audio": segment} for i, segment in enumerate(segments)]
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", lines)) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: preflight: the first 16 answers are all ") and "another version of Vicuna" in told
