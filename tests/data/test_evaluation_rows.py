"""Rows of an evaluation: which data sets the command line opens, their prompts, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import numpy as np
import pytest
import soundfile

from data_pipelines.evaluation.open import open_corpus, open_manifests
from data_pipelines.evaluation.rows import EvaluationRows
from data_pipelines.prepare import dataset
from data_pipelines.prepare.shard_writer import PrepareConfig
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.manifest import Manifest
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.errors import AudioError, UserError
from salmonn_jax.evaluation.predictions import ROW_FIELDS

RULES = AudioRules(too_long="chunk")
PROMPTS = PromptTemplates.load_for_evaluation()
SOUND = {"task": "sound", "answer": "rain", "prompt": "What sound is this?"}


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with two recordings of two seconds."""
    for name, seed in (("a.wav", 0), ("b.flac", 1)):
        clip = np.random.default_rng(seed).integers(-9000, 9000, 32_000).astype(np.int16)
        soundfile.write(tmp_path / name, clip, 16_000, subtype="PCM_16")
    return tmp_path


def write(path: pathlib.Path, *lines: object) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def rows_of(*locations: pathlib.Path, splits=None, check_task=lambda task, metric: None, prompts=PROMPTS):
    return EvaluationRows(open_manifests(locations, splits, RULES), prompts, check_task)


def test_fields_of_a_manifest_row(folder):
    line = {"id": "1", "audio": "a.wav", "references": ["x", "y"], "metric": "accuracy", "language": "en"}
    line |= {"task": "QA", "question": "Who?", "choices": ["x", "z"], "group": {"clip": "a"}, "transcript": "hello"}
    rows = rows_of(write(folder / "mine.dev.jsonl", line))
    fields = rows.fields(0)
    assert set(fields) == set(ROW_FIELDS) and len(rows) == 1 and rows.has_audio(0)
    assert (fields["source"], fields["split"], fields["prompt"]) == (
        "mine",
        "dev",
        "<Speech><SpeechHere></Speech> Who?",
    )
    assert {name: fields[name] for name in ("references", "choices", "group")} == {
        name: line[name] for name in ("references", "choices", "group")
    }
    assert rows.read_audio(0).dtype == np.int16 and len(rows.read_audio(0)) == 32_000


def test_annotations_of_the_original_get_its_test_prompts(folder):
    annotations = [
        {"path": "a.wav", "text": "Hello."},
        {"path": "a.wav", "text": "Happy", "task": "emotion_recognition"},
        {"path": "a.wav", "text": "Red.", "task": "slot_filling", "Q": "colour"},
        {"path": "a.wav", "text": "Yes", "task": "speaker_verification", "expand_wav": ["b.flac"]},
        {"path": "a.wav", "text": "la la", "task": "lyrics_recognition"},
    ]
    path = write(folder / "test.json", json.dumps({"annotation": annotations}))
    rows = rows_of(path)
    prompts = [rows.fields(i)["prompt"].removeprefix("<Speech><SpeechHere></Speech> ") for i in range(5)]
    assert prompts[:4] == [
        "Recognize the speech and give me the transcription.",
        "Describe the emotion of the speaker in one word.",
        "According to the speech, what is the colour?",
        "Do you only hear the same person talking? Answer yes or no.",
    ]
    assert prompts[4] in PromptTemplates.load().by_task["lyrics_recognition"]
    assert rows.fields(0)["source"] == "test" and rows.fields(0)["split"] == "test"
    own = PromptTemplates.load_for_evaluation(str(write(folder / "own.json", json.dumps({"asr": "Write."}))))
    only_asr = write(folder / "asr.json", json.dumps({"annotation": annotations[:1]}))
    assert rows_of(only_asr, prompts=own).fields(0)["prompt"].endswith("Write.")


def test_every_task_of_the_original_has_one_test_prompt():
    """The prompts of a table in the notes on the original; its other tasks have the first of our prompts."""
    stated = {
        "keywords": "Give me only three keywords of the text.",
        "QA": "{}",
        "audiocaption": "Please describe the audio.",
    }
    assert {task: PROMPTS.by_task[task] for task in stated} == {task: (prompt,) for task, prompt in stated.items()}
    assert set(PROMPTS.by_task) == set(PromptTemplates.load().by_task)


def test_prepared_data_sets_and_directories(folder):
    manifest = write(
        folder / "all.jsonl", {"id": "1", "audio": "a.wav", **SOUND}, {"id": "2", "audio": "b.flac", **SOUND}
    )
    opened = Manifest(str(manifest))
    for split in ("train", "test", "dev"):
        config = PrepareConfig(origin="x", rules=AudioRules())
        dataset.prepare_split(lambda: map(opened.__getitem__, range(2)), config, str(folder / "data" / "mine"), split)
    prepared = rows_of(folder / "data" / "mine")
    assert [(s.name, s.split) for s in prepared.sources] == [("mine", "dev"), ("mine", "test")]
    assert [(s.name, s.split) for s in rows_of(folder / "data").sources] == [("mine", "test")]
    assert [s.split for s in rows_of(folder / "data" / "mine", splits=["train"]).sources] == ["train"]
    np.testing.assert_array_equal(prepared.read_audio(0), rows_of(manifest).read_audio(0))
    assert prepared.hash_audio(0) != prepared.hash_audio(1) and prepared.hash_audio(0) == prepared.hash_audio(2)
    assert prepared.missing_files((0, 1)) == (0, "")
    with pytest.raises(UserError, match="has no data set with the split dev or nothing; choose others with --splits"):
        open_corpus("files", folder / "data", ["dev or nothing"], RULES)


def test_the_hash_depends_on_content_and_span_but_not_on_name_and_time(folder):
    (folder / "copy.wav").write_bytes((folder / "a.wav").read_bytes())
    os.utime(folder / "copy.wav", (1, 1))
    spans = [
        "a.wav",
        "copy.wav",
        "b.flac",
        {"path": "a.wav", "start": 0.5},
        {"path": "a.wav", "end": 0.5},
        ["a.wav", "a.wav"],
    ]
    rows = rows_of(write(folder / "m.jsonl", *({"id": f"x{i}", "audio": s, **SOUND} for i, s in enumerate(spans))))
    hashes = [rows.hash_audio(i) for i in range(len(spans))]
    assert hashes[0] == hashes[1] and len(set(hashes)) == len(spans) - 1
    assert all(len(h) == 64 and int(h, 16) for h in hashes)
    (folder / "copy.wav").write_bytes((folder / "b.flac").read_bytes())
    again = rows_of(folder / "m.jsonl")
    assert (
        again.hash_audio(1)
        == hashlib.sha256(
            f"{hashlib.sha256((folder / 'b.flac').read_bytes()).hexdigest()} 0.0 None\n".encode()
        ).hexdigest()
    )


def test_errors_of_single_clips(folder):
    (folder / "junk.wav").write_bytes(b"no audio")
    lines = [{"id": name, "audio": name, **SOUND} for name in ("a.wav", "gone.wav", "junk.wav", "away.wav", ".")]
    rows = rows_of(write(folder / "m.jsonl", *lines))
    assert rows.missing_files((0, 1)) == (3, str(folder / "gone.wav"))
    assert rows.missing_files((0, 2))[0] + rows.missing_files((1, 2))[0] == 3
    for index, reason in ((1, "missing"), (2, "undecodable")):
        with pytest.raises(AudioError) as caught:
            rows.read_audio(index)
        assert caught.value.reason == reason
    with pytest.raises(AudioError) as caught:
        rows.hash_audio(1)
    assert caught.value.reason == "missing"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"id": "s", "audio": "a.wav", **SOUND}, "", {"id": "s", "audio": "b.flac", **SOUND}],
            r"line 3 of .*m\.jsonl and line 1 of .*m\.jsonl have the same id 's'; remove one of the two",
        ),
        (
            [{"audio": "a.wav", **SOUND}, {"audio": "b.flac", **SOUND}, {"audio": "a.wav", **SOUND}],
            r"line 3 of .* and line 1 of .* are the same; remove one",
        ),
        ([{"audio": "a.wav", "answer": "x", "task": "nothing"}], r"line 1 of .*: the task 'nothing' has no prompt in"),
        (['{"broken'], r"none of the 1 rows can be used; the first is line 1 of .*m\.jsonl: invalid: not JSON"),
    ],
)
def test_what_is_refused(folder, lines, message):
    with pytest.raises(UserError, match=message):
        rows_of(write(folder / "m.jsonl", *lines))


def test_the_same_annotation_twice_is_refused(folder):
    annotation = {"path": "a.wav", "text": "Hello."}
    path = write(folder / "m.json", json.dumps({"annotation": [annotation, {**annotation, "text": "x"}, annotation]}))
    with pytest.raises(UserError, match=r"annotation 3 of .* and annotation 1 of .* are the same"):
        rows_of(path)


def test_segments_and_questions_of_one_clip_are_no_duplicates(folder):
    segments = [{"audio": {"path": "a.wav", "start": start}, **SOUND} for start in (0.0, 0.5, 1.0)]
    questions = [
        {"audio": "a.wav", "answer": "x", "task": "QA", "question": question} for question in ("Who?", "When?")
    ]
    assert len(rows_of(write(folder / "m.jsonl", *segments, *questions))) == 5


def test_two_data_sets_without_ids_are_told_apart(folder):
    """kubric #68 and others: rows of different files with the same number are different rows."""
    one, two = (write(folder / f"{name}.test.jsonl", {"audio": "a.wav", **SOUND}) for name in ("one", "two"))
    assert [rows_of(one, two).fields(i)["source"] for i in range(2)] == ["one", "two"]
    other = write(folder / "other" / "one.test.jsonl", {"audio": "../a.wav", **SOUND})
    assert [s.name for s in rows_of(one, other).sources] == [f"{folder.name}/one", "other/one"]
    with pytest.raises(UserError, match="is given twice"):
        rows_of(one, folder / "." / "one.test.jsonl")


def test_rejected_rows_are_listed_and_the_others_used(folder):
    lines = [{"audio": "a.wav", **SOUND}, '{"audio": "b.flac", "answer": "x\\ud83c", "task": "sound", "prompt": "?"}']
    lines += ["{", {"audio": "b.flac", "task": "slot_filling", "answer": "x"}]
    rows = rows_of(write(folder / "m.jsonl", *lines))
    assert len(rows) == 1
    assert [row.place.partition(" of ")[0] for row in rows.rejected] == ["line 2", "line 3", "line 4"]
    assert [row.reason.partition(" ")[0] for row in rows.rejected] == 3 * ["invalid:"]
    (source,) = rows.describe_sources()
    assert source["rows"] == 4 and len(source["rejected"]) == 3 and source["rejected"][1].startswith("line 3 of ")


def test_splits_need_a_directory(folder):
    with pytest.raises(UserError, match="--splits chooses splits of directories, but --manifest names only files"):
        rows_of(write(folder / "m.jsonl", {"audio": "a.wav", **SOUND}), splits=["test"])


def test_an_unknown_task_is_told_with_its_line(folder):
    def check_task(task, metric):
        if metric:
            raise UserError(f"unknown metric {metric!r}; it must be one of: wer")

    lines = [{"audio": "a.wav", **SOUND}, {"audio": "b.flac", **SOUND, "metric": "werr"}]
    with pytest.raises(UserError, match=r"line 2 of .*m\.jsonl: unknown metric 'werr'; it must be one of: wer"):
        rows_of(write(folder / "m.jsonl", *lines), check_task=check_task)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.jsonl", "cannot be read"),
        ("gone", "does not exist; it must be a directory or a manifest"),
        ("a.wav", "is neither"),
    ],
)
def test_locations_that_are_no_data_sets(folder, name, message):
    with pytest.raises(UserError, match=message):
        rows_of(folder / name)
