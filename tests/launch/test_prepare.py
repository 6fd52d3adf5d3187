"""`launch.prepare` as a user runs it, in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from data_pipelines.sources.prepared import PreparedSource
from launch import cli, prepare
from tests.data.test_minicorpus import tone


@pytest.fixture
def manifest(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(300, 1.0), tone(400, 1.0)], axis=1), 16_000)
    lines = [{"id": "1", "audio": "a.wav", "answer": "tone"}, {"id": "2", "answer": "text"}]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_manifest(manifest, tmp_path, capsys):
    arguments = ["manifest", str(manifest), "--output", str(tmp_path / "data" / "mine"), "--workers", "1"]
    prepare.main([*arguments, "--split", "dev", "--audio", "pcm", "--channels", "mean", "--too-long", "chunk"])
    said = capsys.readouterr().out
    assert "mine dev: 2 examples\n" in said
    assert said.count("\n") == 3
    read = PreparedSource(tmp_path / "data" / "mine", "mine", "dev")
    expected = (tone(300, 1.0).astype(int) + tone(400, 1.0)) / 2
    np.testing.assert_allclose(read[0].audio, expected, atol=0.5)
    recipe = json.loads((tmp_path / "data" / "mine" / "dev.statistics.json").read_text())["recipe"]
    assert (recipe["audio"], recipe["rules"]["channels"], recipe["rules"]["too_long"]) == ("pcm", "mean", "chunk")


def test_a_corpus_of_the_paper(tmp_path, capsys):
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


def told(arguments, capsys) -> str:
    """The line that a user reads who is wrong."""
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: prepare.main(arguments))
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_is_wrong_is_told_in_one_line(manifest, tmp_path, capsys):
    (tmp_path / "a.wav").unlink()
    output = str(tmp_path / "data")
    arguments = ["manifest", str(manifest), "--output", output, "--workers", "1"]
    line = told(arguments, capsys)
    assert line.startswith("error: 1 of 2 entries are rejected, 1 of them as 'missing': see ")
    assert line.endswith("correct them and run the command again, or raise --rejected-share")
    assert not (tmp_path / "data" / "dataset_info.json").exists()
    prepare.main([*arguments, "--rejected-share", "0.5"])

    assert "cannot be read" in told(["manifest", "none.jsonl", "--output", output + "2"], capsys)
    assert "--workers=0" in told(["manifest", str(manifest), "--output", output + "2", "--workers", "0"], capsys)
    assert "no tokenizer.model" in told([*arguments[:3], output + "2", "--tokenizer", str(tmp_path)], capsys)
    corpus = ["corpus", "librispeach", "--folder", str(tmp_path), "--split", "train", "--output", output + "2"]
    assert "did you mean 'librispeech'" in told(corpus, capsys)
    assert not (tmp_path / "data2" / "dataset_info.json").exists()


def test_what_follows_beam_is_for_beam(manifest, tmp_path, monkeypatch):
    from data_pipelines.prepare import dataset

    given = {}
    monkeypatch.setattr(dataset, "prepare_split", lambda *rest, **options: given.update(options))
    arguments = ["manifest", str(manifest), "--output", str(tmp_path / "data")]
    prepare.main([*arguments, "--beam", "--runner=FlinkRunner", "--parallelism", "8"])
    assert given["beam_options"] == ["--runner=FlinkRunner", "--parallelism", "8"]
    prepare.main(arguments)
    assert given["beam_options"] is None
    with pytest.raises(SystemExit):
        prepare.main([*arguments, "--workers", "1", "--beam"])
