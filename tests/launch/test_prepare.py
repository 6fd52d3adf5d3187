"""Tests of the command line of `launch.prepare`, run in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from data_pipelines import corpora
from data_pipelines.sources.prepared import PreparedSource
from launch import cli, prepare
from salmonn_jax.errors import UserError
from tests.data.test_minicorpus import tone


@pytest.fixture
def manifest(tmp_path):
    """Returns the path of a manifest with one stereo clip and one text-only example."""
    soundfile.write(tmp_path / "a.wav", np.stack([tone(300, 1.0), tone(400, 1.0)], axis=1), 16_000)
    lines = [{"id": "1", "audio": "a.wav", "answer": "tone"}, {"id": "2", "prompt": "Say it.", "answer": "text"}]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_prepare_manifest(manifest, tmp_path, capsys):
    arguments = ["manifest", str(manifest), "--output", str(tmp_path / "data" / "mine"), "--workers", "1"]
    prepare.main([*arguments, "--split", "dev", "--audio", "pcm", "--channels", "mean", "--too-long", "chunk"])
    output = capsys.readouterr().out
    assert "mine dev: 2 examples\n" in output
    assert output.count("\n") == 4
    source = PreparedSource(tmp_path / "data" / "mine", "mine", "dev")
    expected = (tone(300, 1.0).astype(int) + tone(400, 1.0)) / 2
    np.testing.assert_allclose(source[0].audio, expected, atol=0.5)
    config = json.loads((tmp_path / "data" / "mine" / "dev.statistics.json").read_text())["config"]
    assert (config["audio"], config["rules"]["channels"], config["rules"]["too_long"]) == ("pcm", "mean", "chunk")


def test_prepare_corpus(tmp_path, capsys):
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "1-2-0000.flac", tone(300, 1.5), 16_000)
    (chapter / "1-2.trans.txt").write_text("1-2-0000 HELLO THERE\n")
    arguments = ["corpus", "librispeech", "--folder", str(tmp_path / "LibriSpeech"), "--split", "dev_clean"]
    prepare.main([*arguments, "--output", str(tmp_path / "data"), "--workers", "1"])
    (example,) = PreparedSource(tmp_path / "data", "librispeech", "dev_clean")
    assert example.id.startswith("1-2-0000")
    assert example.answer.lower().startswith("hello there")
    np.testing.assert_array_equal(example.audio, tone(300, 1.5))


def error_line(arguments, capsys) -> str:
    """Runs the command, checks that it exits with code 2, and returns the last line of stderr."""
    with pytest.raises(SystemExit) as exit_info:
        cli.run(lambda: prepare.main(arguments))
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_wrong_input_is_reported_in_one_line(manifest, tmp_path, capsys):
    (tmp_path / "a.wav").unlink()
    output = str(tmp_path / "data")
    arguments = ["manifest", str(manifest), "--output", output, "--workers", "1"]
    line = error_line(arguments, capsys)
    assert line.startswith("error: 1 of 2 entries are rejected, 1 of them as 'missing': see ")
    assert line.endswith("correct them and run the command again, or raise --rejected-share")
    assert not (tmp_path / "data" / "dataset_info.json").exists()
    prepare.main([*arguments, "--rejected-share", "0.5"])

    assert "cannot be read" in error_line(["manifest", "none.jsonl", "--output", output + "2"], capsys)
    assert "--workers=0" in error_line(["manifest", str(manifest), "--output", output + "2", "--workers", "0"], capsys)
    assert "no tokenizer.model" in error_line([*arguments[:3], output + "2", "--tokenizer", str(tmp_path)], capsys)
    corpus = ["corpus", "librispeach", "--folder", str(tmp_path), "--split", "train", "--output", output + "2"]
    assert "did you mean 'librispeech'" in error_line(corpus, capsys)
    assert not (tmp_path / "data2" / "dataset_info.json").exists()


def test_arguments_after_beam_are_passed_to_beam(manifest, tmp_path, monkeypatch):
    from data_pipelines.prepare import dataset

    passed = {}
    monkeypatch.setattr(dataset, "prepare_split", lambda *args, **options: passed.update(options))
    arguments = ["manifest", str(manifest), "--output", str(tmp_path / "data")]
    prepare.main([*arguments, "--beam", "--runner=FlinkRunner", "--parallelism", "8"])
    assert passed["beam_options"] == ["--runner=FlinkRunner", "--parallelism", "8"]
    prepare.main(arguments)
    assert passed["beam_options"] is None
    with pytest.raises(UserError, match="not allowed with argument --workers"):
        prepare.main([*arguments, "--workers", "1", "--beam"])


def test_inspect_prints_what_a_run_reads(tmp_path, capsys):
    page = tmp_path / "inspect.html"
    data = f"data.data_dir={tmp_path / 'tones'}"
    # Overrides may precede and follow the options.
    prepare.main(["inspect", "debug", data, "--batches", "2", "--output", str(page), "data.packing=pad", "seed=1"])
    out = capsys.readouterr().out
    assert "tones" in out and "words" in out and "2 batches, 16.0 examples each" in out
    assert "Which tone is this?" in page.read_text()


@pytest.mark.parametrize("extra", [["--nonsense", "seed=1"], ["seed=1", "--nonsense"], ["seed=1", "-x"]])
def test_unknown_options_of_inspect_are_errors(extra, capsys):
    assert "unrecognized arguments" in error_line(["inspect", "debug", "--batches", "1", *extra], capsys)


def test_wrong_overrides_after_options_are_errors(capsys):
    assert "sed" in error_line(["inspect", "debug", "--batches", "1", "sed=1"], capsys)


def test_arguments_after_a_manifest_are_errors(manifest, capsys):
    line = error_line(["manifest", str(manifest), "--output", "none", "seed=1"], capsys)
    assert "unrecognized arguments: seed=1" in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "the source 'empty' has no examples"),
        ("blank.jsonl", b"\n \n", "the source 'blank' has no examples"),
        ("empty.json", b'{"annotation": []}', "the source 'empty' has no examples"),
        ("bad.jsonl", b'{"answer": "x", "audio": null}\n' * 2, "examples cannot be used, so no batch can be made"),
    ],
)
def test_a_source_without_usable_examples_is_one_line(tmp_path, monkeypatch, capsys, name, content, message):
    """A limit of 1 accepts any share of bad examples, but a run needs some good ones."""
    (tmp_path / name).write_bytes(content)
    corpora.open_corpus("tones", tmp_path)  # writes a tokenizer
    monkeypatch.setattr("data_pipelines.from_config.find_tokenizer_dir", lambda *args: tmp_path)
    data = ["data.corpus=files", f"data.data_dir={tmp_path}", f'data.mixture={{"{name.split(".")[0]}": 1}}']
    assert message in error_line(["inspect", "debug", "--batches", "1", *data, "data.max_bad_share=1"], capsys)
