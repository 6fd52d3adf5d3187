"""Tests of prepared data sets: content, statistics, rejected entries, resumption, Beam and URLs."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import soundfile
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from data_pipelines.examples import BadExample
from data_pipelines.prepare import dataset, shard_writer
from data_pipelines.prepare.shard_writer import PrepareConfig, write_shard
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.manifest import Manifest
from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.prepared import PreparedSource, open_split
from data_pipelines.sources.records import from_record
from salmonn_jax.errors import UserError
from tests.data.test_minicorpus import tone

LENGTHS = (1.0, 1.3, 2.0, 1.7, 1.1)
TEXT = {"task": "text", "prompt": "Say it."}  # fields of a text-only example


def noise(seed: int, seconds: float) -> np.ndarray:
    """Returns noise, int16[samples] at 16 kHz."""
    return np.random.default_rng(seed).integers(-20_000, 20_000, int(seconds * 16_000), dtype=np.int16)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Returns a folder with five clips of noise and a manifest of these clips and one text-only example."""
    lines = []
    for i, seconds in enumerate(LENGTHS):
        name = f"{i}.{'wav' if i % 2 else 'flac'}"
        soundfile.write(tmp_path / name, noise(i, seconds), 16_000, subtype="PCM_16")
        lines.append({"id": f"clip {i}", "audio": name, "answer": f"größe {i}", "transcript": f"größe {i}"})
    lines.append({"id": "text", "answer": "Paris", "task": "text", "prompt": "Capital?", "question": "of France"})
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def prepare(manifest, output, *, split: str = "train", audio: str = "flac", rules: AudioRules | None = None, **options):
    """Prepares a manifest as one split, with two clips per shard by default."""

    def read_entries():
        opened = Manifest(str(manifest))
        return map(opened.__getitem__, range(len(opened)))

    config = PrepareConfig(origin=str(manifest), rules=rules or AudioRules(), audio=audio)
    dataset.prepare_split(read_entries, config, str(output), split, **{"clips_per_shard": 2, **options})


def shards(output: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of all shards by file name."""
    return {path.name: path.read_bytes() for path in sorted(output.glob("clips-*"))}


def rejected(output: pathlib.Path) -> list[dict]:
    """Returns the list of rejected entries of the split `train`."""
    return [json.loads(line) for line in (output / "train.rejected.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("audio", ["flac", "pcm"])
def test_prepared_examples_equal_the_manifest(folder, audio, capsys):
    prepare(folder / "all.jsonl", folder / "data", audio=audio)
    assert f"{folder / 'data'} train: 6 examples\n" in capsys.readouterr().out
    source = open_split(folder / "data", "mine", "train")
    assert len(source) == 6
    for examples in (list(source), [pickle.loads(pickle.dumps(source))[i] for i in range(6)]):
        for i, example in enumerate(examples[:5]):
            assert example.audio.dtype == np.int16
            np.testing.assert_array_equal(example.audio, noise(i, LENGTHS[i]))
            assert (example.id, example.source, example.task) == (f"clip {i}", "mine", "asr")
            assert (example.answer, example.transcript, example.prompt) == (f"größe {i}", f"größe {i}", "")
        text = examples[5]
        assert text.audio is None
        assert (text.prompt, text.question, text.answer, text.task) == ("Capital?", "of France", "Paris", "text")
    assert [example.audio for example in source.read_texts()] == [None] * 6

    statistics = json.loads((folder / "data" / "train.statistics.json").read_text(encoding="utf-8"))
    assert statistics["tasks"]["asr"]["seconds"] == {"min": 1.0, "mean": 1.42, "max": 2.0}
    assert statistics["tasks"]["asr"]["characters"] == {"min": 7, "mean": 7, "max": 7}
    assert statistics["tasks"]["text"]["clips"] == 0
    assert rejected(folder / "data") == []
    assert not list((folder / "data").glob("*unfinished*"))


def test_fields_of_evaluation_are_stored(folder):
    fields = {"references": ["a dog", "ein Hund"], "metric": "accuracy", "language": "en", "group": {"clip": "0"}}
    line = {"id": "0", "audio": "0.flac", "task": "sound", "choices": ["a dog", "a cat"]} | fields
    (folder / "one.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    prepare(folder / "one.jsonl", folder / "data", split="test")
    example = open_split(folder / "data", "mine", "test")[0]
    assert (example.answer, example.references, example.choices) == ("a dog", ("a dog", "ein Hund"), ("a dog", "a cat"))
    assert (example.metric, example.language, example.group) == ("accuracy", "en", {"clip": "0"})


def test_tfds_reads_the_data_set_without_tensorflow(folder):
    import tensorflow_datasets as tfds

    prepare(folder / "all.jsonl", folder / "data")
    source = tfds.builder_from_directory(str(folder / "data")).as_data_source("train")
    assert [source[i]["id"].decode() for i in range(6)] == [*(f"clip {i}" for i in range(5)), "text"]
    assert source[0]["audio"][:4] == b"fLaC"
    assert "tensorflow" not in sys.modules


def test_the_bytes_do_not_depend_on_the_number_of_processes(folder):
    prepare(folder / "all.jsonl", folder / "one", workers=1)
    prepare(folder / "all.jsonl", folder / "two", workers=2)
    assert len(shards(folder / "one")) == 3
    assert shards(folder / "one") == shards(folder / "two")
    for name in ("dataset_info.json", "features.json", "train.statistics.json", "train.rejected.jsonl"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()


def test_an_interrupted_run_resumes_and_keeps_finished_shards(folder, monkeypatch, capsys):
    def interrupted(job, index):
        if index == 1:
            raise KeyboardInterrupt
        return write_shard(job, index)

    monkeypatch.setattr(dataset, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder / "all.jsonl", folder / "data")
    with pytest.raises(UserError, match="no data set in"):
        open_split(folder / "data", "mine", "train")
    (first,) = (folder / "data").glob("clips-train*")
    before = first.stat().st_mtime_ns
    # A killed process leaves a partly written shard, and a complete shard without its report.
    unfinished = first.with_name("clips-train.array_record-00001-of-00003.0123.unfinished")
    unfinished.write_bytes(first.read_bytes()[:100])
    first.with_name("clips-train.array_record-00002-of-00003").write_bytes(b"stale")

    monkeypatch.setattr(dataset, "write_shard", write_shard)
    prepare(folder / "all.jsonl", folder / "data")
    assert first.stat().st_mtime_ns == before
    assert not unfinished.exists()
    prepare(folder / "all.jsonl", folder / "uninterrupted")
    assert shards(folder / "data") == shards(folder / "uninterrupted")

    times = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")}
    capsys.readouterr()
    prepare(folder / "all.jsonl", folder / "data")
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")}
    captured = capsys.readouterr()
    assert "already holds the split 'train'" in captured.err
    assert "6 examples" in captured.out
    with pytest.raises(UserError, match="holds the split 'train', prepared with other options or another"):
        prepare(folder / "all.jsonl", folder / "data", audio="pcm")


def test_a_shard_with_changed_entries_is_written_again(folder, monkeypatch):
    monkeypatch.setattr(dataset, "_finish", lambda *args: 1 / 0)  # interrupts after all shards are written
    with pytest.raises(ZeroDivisionError):
        prepare(folder / "all.jsonl", folder / "data")
    monkeypatch.undo()
    before = [path.stat().st_mtime_ns for path in sorted((folder / "data").glob("clips-*"))]
    text = (folder / "all.jsonl").read_text(encoding="utf-8")
    (folder / "all.jsonl").write_text(text.replace("Paris", "Lyon"), encoding="utf-8")
    prepare(folder / "all.jsonl", folder / "data")
    after = [path.stat().st_mtime_ns for path in sorted((folder / "data").glob("clips-*"))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]
    assert PreparedSource(folder / "data", "mine", "train")[5].answer == "Lyon"


def test_rejected_entries_are_counted_and_listed(folder, capsys):
    flac = (folder / "0.flac").read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (folder / "head.flac").write_bytes(flac[:50])
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan] * 9000, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "zeros.wav", np.zeros(16_000, np.int16), 16_000)
    lines = [
        {"id": "good", "audio": "0.flac", "answer": "a"},
        {"id": "cut", "audio": "cut.flac", "answer": "a"},
        {"id": "head", "audio": "head.flac", "answer": "a"},
        {"id": "empty", "audio": "empty.wav", "answer": "a"},
        {"id": "nan", "audio": "nan.wav", "answer": "a"},
        {"id": "zeros", "audio": "zeros.wav", "answer": "a"},
        {"id": "gone", "audio": "gone.wav", "answer": "a"},
        {"id": "gone too", "audio": ["0.flac", "gone.wav"], "answer": "a"},
        {"id": "good", "audio": "1.wav", "answer": "the id is there twice"},
        {"id": "mute", "audio": "1.wav"},
        {"id": "good too", "audio": "1.wav", "answer": "a"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "{not json\n"
    (folder / "bad.jsonl").write_text(text, encoding="utf-8")

    with pytest.raises(UserError) as error:
        prepare(folder / "bad.jsonl", folder / "data")
    (line,) = str(error.value).splitlines()
    assert "10 of 12 entries are rejected, 3 of them as 'invalid'" in line
    assert str(folder / "data" / "train.rejected.jsonl") in line
    with pytest.raises(UserError, match="no data set in"):
        open_split(folder / "data", "mine", "train")

    capsys.readouterr()
    prepare(folder / "bad.jsonl", folder / "data", max_rejected_share=0.9)
    counts = {"invalid": 3, "undecodable": 2, "missing": 2, "empty": 1, "not finite": 1, "silent": 1}
    assert json.loads((folder / "data" / "train.statistics.json").read_text())["rejected"] == counts
    rejected_by_id = {row["example"]: row for row in rejected(folder / "data")}
    assert {id: row["reason"] for id, row in rejected_by_id.items()} == {
        "good": "invalid",
        "entry 10": "invalid",
        "entry 12": "invalid",
        "cut": "undecodable",
        "head": "undecodable",
        "empty": "empty",
        "nan": "not finite",
        "zeros": "silent",
        "gone": "missing",
        "gone too": "missing",
    }
    assert rejected_by_id["gone"]["detail"] == f"no audio file {folder / 'gone.wav'}"
    assert "10 of 12 entries rejected (invalid 3, " in capsys.readouterr().out
    assert [example.id for example in PreparedSource(folder / "data", "mine", "train")] == ["good", "good too"]


def test_bad_lines_are_listed_and_the_rest_is_prepared(folder):
    """Checks texts with surrogates, which cannot be written as UTF-8."""
    bad = ('{"audio": "0.flac", "answer": "\\ud83c"}', '{"id": "\\udcff", "audio": "0.flac", "answer": "x"}')
    lines = [
        *bad,
        '{"id": "own prompt", "audio": "0.flac", "answer": "x", "prompt": "What is said?"}',
        '{"\\udc00": 1}',
    ]
    (folder / "bad.jsonl").write_text("".join(f"{line}\n\n" for line in lines))
    prepare(folder / "bad.jsonl", folder / "data", max_rejected_share=0.8)
    (example,) = PreparedSource(folder / "data", "mine", "train")
    assert example.id == "own prompt"
    assert [row["detail"].split(" of ")[0] for row in rejected(folder / "data")] == ["line 1", "line 3", "line 7"]


def test_repaired_files_are_read_again(folder):
    (folder / "1.wav").rename(folder / "away")
    with pytest.raises(UserError, match=r"1 of 6 entries are rejected, 1 of them as 'missing': see .*rejected\.jsonl"):
        prepare(folder / "all.jsonl", folder / "data")
    last = folder / "data" / "clips-train.array_record-00002-of-00003"
    before = last.stat().st_mtime_ns
    (folder / "away").rename(folder / "1.wav")
    prepare(folder / "all.jsonl", folder / "data")
    assert last.stat().st_mtime_ns == before
    assert len(PreparedSource(folder / "data", "mine", "train")) == 6
    assert rejected(folder / "data") == []


def test_original_annotations(folder):
    annotations = [
        {"path": "1.wav", "text": "one", "task": "asr"},
        {"path": "1.wav", "text": "a bark", "task": "audiocaption_v2"},
        {"path": "0.flac", "text": "both", "task": "QA", "Q": "what?", "expand_wav": ["1.wav", "3.wav"]},
    ]
    (folder / "original.json").write_text(json.dumps({"annotation": annotations}))
    prepare(folder / "original.json", folder / "data")
    source = PreparedSource(folder / "data", "mine", "train")
    assert [example.id for example in source] == ["1.wav#0", "1.wav#1", "0.flac#2"]
    assert [example.transcript for example in source] == ["one", "", ""]
    assert (source[2].task, source[2].question, source[2].answer) == ("QA", "what?", "both")
    gap = np.zeros(1600, np.int16)
    joined = [noise(0, LENGTHS[0]), gap, noise(1, LENGTHS[1]), gap, noise(3, LENGTHS[3])]
    np.testing.assert_array_equal(source[2].audio, np.concatenate(joined))


def test_audio_rules_are_applied(folder):
    soundfile.write(folder / "stereo.wav", np.stack([tone(300, 2.5), tone(400, 2.5)], axis=1), 16_000)
    soundfile.write(folder / "short.wav", tone(300, 0.5), 16_000)
    lines = [{"id": name, "audio": f"{name}.wav", "answer": "a"} for name in ("stereo", "short")]
    (folder / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    clips = {}
    for too_long in ("truncate", "chunk"):
        prepare(folder / "two.jsonl", folder / too_long, rules=AudioRules(too_long=too_long, maximum_seconds=2.0))
        clips[too_long] = [example.audio for example in PreparedSource(folder / too_long, "mine", "train")]
    np.testing.assert_array_equal(clips["truncate"][0], tone(300, 2.5)[:32_000])
    np.testing.assert_array_equal(clips["chunk"][0], tone(300, 2.5))
    np.testing.assert_array_equal(clips["chunk"][1], np.pad(tone(300, 0.5), (0, 8_000)))
    rules = AudioRules(channels="mean", too_long="drop", maximum_seconds=2.0)
    prepare(folder / "two.jsonl", folder / "drop", rules=rules, max_rejected_share=0.5)
    assert [row["reason"] for row in rejected(folder / "drop")] == ["too long"]
    with pytest.raises(
        UserError, match=r"stereo: too long: the clip is 2\.5 s, the window 2 s; or use --too-long truncate, chunk"
    ):
        prepare(
            folder / "two.jsonl", folder / "error", rules=AudioRules(too_long="error", maximum_seconds=2.0), workers=2
        )


def test_a_second_split_leaves_the_first_unchanged(folder):
    prepare(folder / "all.jsonl", folder / "data")
    before = shards(folder / "data")
    prepare(folder / "all.jsonl", folder / "data", split="test_clean", clips_per_shard=10)
    assert len(PreparedSource(folder / "data", "mine", "train")) == 6
    assert len(open_split(folder / "data", "mine", "test_clean")) == 6
    assert before.items() <= shards(folder / "data").items()
    with pytest.raises(UserError, match="the source 'mine' has no split 'dev'; it has: test_clean, train"):
        open_split(folder / "data", "mine", "dev")
    with pytest.raises(UserError, match="--split='a-b': must be letters, digits and underscores"):
        prepare(folder / "all.jsonl", folder / "data", split="a-b")


def test_a_folder_of_another_data_set_raises_user_error(folder):
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_text('{"name": "mnist"}')
    with pytest.raises(UserError, match="holds the data set 'mnist'; choose another folder with --output"):
        prepare(folder / "all.jsonl", folder / "data")


def test_manifest_audio_and_output_may_be_urls(bucket, folder):
    for name in ("0.flac", "1.wav"):
        bucket.pipe(f"/lab/{name}", (folder / name).read_bytes())
    lines = [{"audio": "0.flac", "answer": "a"}, {"audio": "1.wav", "answer": "b"}, {"audio": "2.wav", "answer": "c"}]
    bucket.pipe("/lab/all.jsonl", "\n".join(map(json.dumps, lines)).encode())
    prepare("gs://lab/all.jsonl", folder / "data", max_rejected_share=0.5)
    source = PreparedSource(folder / "data", "mine", "train")
    np.testing.assert_array_equal(source[1].audio, noise(1, LENGTHS[1]))
    assert [row["reason"] for row in rejected(folder / "data")] == ["missing"]

    prepare("gs://lab/all.jsonl", "gs://lab/data", max_rejected_share=0.5)
    at_url = {path.rsplit("/", 1)[-1]: bucket.cat(path) for path in bucket.ls("/lab/data", detail=False)}
    assert at_url == {path.name: path.read_bytes() for path in (folder / "data").iterdir()}
    prepare(f"file://{folder}/all.jsonl", f"file://{folder}/other")
    assert len(PreparedSource(folder / "other", "mine", "train")) == 6


def test_statistics_include_answer_lengths_in_tokens(folder, capsys, monkeypatch):
    monkeypatch.setattr(shard_writer, "load_tokenizer", lambda path: types.SimpleNamespace(encode=str.split))
    config = PrepareConfig(origin="two", tokenizer="unused: load_tokenizer is replaced")
    entries = [ManifestEntry(id="1", answer="one two three", **TEXT), ManifestEntry(id="2", answer="one", **TEXT)]
    dataset.prepare_split(lambda: iter(entries), config, str(folder / "data"), "train")
    assert "1/2.0/3" in capsys.readouterr().out
    statistics = json.loads((folder / "data" / "train.statistics.json").read_text())
    assert statistics["tasks"]["text"]["tokens"] == {"min": 1, "mean": 2, "max": 3}


def test_entries_after_a_wrong_entry_are_read(folder):
    """Checks an iterator that raises BadExample and continues, as those of manifests and of the paper's corpora do."""

    class Entries:
        def __init__(self):
            self.remaining = [
                ManifestEntry(id="1", audio=(AudioSpan(str(folder / "1.wav")),), answer="a"),
                None,
                ManifestEntry(id="2", answer="b", **TEXT),
            ]

        def __iter__(self):
            return self

        def __next__(self):
            if not self.remaining:
                raise StopIteration
            entry = self.remaining.pop(0)
            if entry is None:
                raise BadExample("invalid", "it is torn")
            return entry

    dataset.prepare_split(Entries, PrepareConfig(origin="three"), str(folder / "data"), "train", max_rejected_share=0.5)
    assert [example.id for example in PreparedSource(folder / "data", "mine", "train")] == ["1", "2"]
    assert rejected(folder / "data") == [
        {"source": "three", "example": "entry 2", "reason": "invalid", "detail": "it is torn"}
    ]
    with pytest.raises(UserError, match="nothing has no entries"):
        dataset.prepare_split(lambda: iter(()), PrepareConfig(origin="nothing"), str(folder / "data"), "test")


def test_records_of_other_builders_are_read():
    """Checks a record with fewer text features, an unknown feature and 24-bit FLAC."""
    out = io.BytesIO()
    soundfile.write(out, np.full((4000, 1), 0.5), 16_000, format="FLAC", subtype="PCM_24")
    features = tf_feature_pb2.Features()
    fields = {"id": b"1", "prompt": b"What?", "answer": b"a dog", "task": b"sound", "audio": out.getvalue()}
    for name, value in fields.items():
        features.feature[name].bytes_list.value.append(value)
    features.feature["speaker"].int64_list.value.append(3)
    example = from_record(tf_example_pb2.Example(features=features).SerializeToString(), "mine")
    assert (example.id, example.answer, example.source, example.question) == ("1", "a dog", "mine", "")
    np.testing.assert_array_equal(example.audio, np.full(4000, 16384, np.int16))


def test_beam_writes_the_same_bytes(folder):
    pytest.importorskip(
        "apache_beam", reason="apache-beam needs a separate environment, in which `make test` runs this test"
    )
    prepare(folder / "all.jsonl", folder / "here")
    prepare(folder / "all.jsonl", folder / "beam", beam_options=["--runner=DirectRunner"])
    assert shards(folder / "here") == shards(folder / "beam")


def test_missing_beam_raises_user_error_with_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs the package apache_beam .*salmonn-jax\[beam\]"):
        prepare(folder / "all.jsonl", folder / "data", beam_options=[])
