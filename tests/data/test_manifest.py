"""Tests of manifests and original SALMONN annotations: parsing, reading of audio, and rejection of wrong entries."""

from __future__ import annotations

import io
import json

import fsspec
import numpy as np
import pytest
import soundfile

from data_pipelines import corpora
from data_pipelines.examples import BadExample
from data_pipelines.sources import audio
from data_pipelines.sources.audio import AudioRules, fit_clip, read_clip
from data_pipelines.sources.manifest import Manifest, ManifestSource
from data_pipelines.sources.manifest_entry import (
    GAP_SAMPLES,
    AudioSpan,
    ManifestEntry,
    entry_from_annotation,
    entry_from_json,
    entry_to_json,
)
from salmonn_jax import paths
from salmonn_jax.errors import AudioWarning, UserError

CLIP = np.random.default_rng(0).integers(-9000, 9000, 32_000).astype(np.int16)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with a mono FLAC file and a stereo WAV file."""
    soundfile.write(tmp_path / "a.flac", CLIP, 16_000)
    soundfile.write(tmp_path / "b.wav", np.stack([CLIP, -CLIP], axis=1)[:20_000], 16_000)
    return tmp_path


def write_manifest(folder, *entries, name="some.jsonl"):
    """Writes a manifest and returns its path."""
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(folder / name)


@pytest.mark.parametrize(
    "entry",
    [
        ManifestEntry(id="1", audio=(AudioSpan("a.flac"),), answer="hello"),
        ManifestEntry(
            id="2", audio=(AudioSpan("a.flac", 1.5, 3.0), AudioSpan("b.wav")), answer="Yes", task="speaker_verification"
        ),
        ManifestEntry(id="3", answer="Goethe", prompt="Who wrote Faust?", task="text"),
        ManifestEntry(id="4", audio=(AudioSpan("a.flac", 2.0, None),), answer="x", question="Which?", transcript="y"),
        ManifestEntry(
            id="5",
            audio=(AudioSpan("a.flac"),),
            answer="a dog",
            references=("a dog", "a barking dog"),
            metric="accuracy",
            language="en",
            choices=("a dog", "a cat"),
            group={"clip": "a"},
        ),
    ],
)
def test_entry_survives_a_json_round_trip(entry):
    assert entry_from_json(json.loads(json.dumps(entry_to_json(entry))), 9) == entry


def test_the_first_reference_is_the_answer(folder):
    line = {"audio": "a.flac", "references": ["a dog", "a barking dog"], "task": "audiocaption"}
    source = ManifestSource(write_manifest(folder, line), "mine", AudioRules())
    assert (source[0].answer, source[0].references) == ("a dog", ("a dog", "a barking dog"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "x", "references": ["x"]}, "has answer and references; give one of them"),
        ({"references": []}, r"references=\[\]: must be a list of texts"),
        ({"references": ["x", " "]}, "references=.*: must be a list of texts that are not empty"),
        ({"references": "x"}, "references='x': must be a list of texts"),
        ({"references": ["x\ud83c"]}, "references is not Unicode text"),
        ({"answer": "x", "choices": [1, 2]}, r"choices=\[1, 2\]: must be a list of texts"),
        ({"answer": "x", "group": {"speaker": 1089}}, "group=.*: must be an object whose values are strings"),
        ({"answer": "x", "group": {"speaker": "\ud83c"}}, "group is not Unicode text"),
        ({"answer": "x", "metric": 3}, "metric=3: must be a string"),
        ({"answer": "x", "reference": "y"}, "unknown field 'reference'; the known fields are: .*references"),
    ],
)
def test_wrong_fields_of_evaluation_are_rejected(fields, message):
    with pytest.raises(BadExample, match=message):
        entry_from_json({"audio": "a.flac"} | fields, 0)


def test_audio_paths_are_relative_to_the_manifest(folder):
    source = ManifestSource(write_manifest(folder, {"audio": "a.flac", "answer": "hello"}), "mine", AudioRules())
    assert len(source) == 1
    assert (source[0].id, source[0].answer, source[0].source, source[0].prompt) == ("0", "hello", "mine", "")
    np.testing.assert_array_equal(source[0].audio, CLIP)


def test_audio_spans_are_joined_with_silence(folder):
    spans = [{"path": "a.flac", "start": 0.5, "end": 1.0}, "b.wav"]
    source = ManifestSource(write_manifest(folder, {"audio": spans, "answer": "Yes"}), "mine", AudioRules())
    expected = np.concatenate([CLIP[8000:16_000], np.zeros(GAP_SAMPLES, np.int16), CLIP[:20_000]])
    np.testing.assert_array_equal(source[0].audio, expected)


def test_original_annotations(folder):
    annotations = [
        {"path": "a.flac", "text": "Hello."},
        {"path": "a.flac", "text": "a dog", "task": "audiocaption"},
        {"path": "a.flac", "text": "Yes", "task": "speaker_verification", "expand_wav": ["b.wav"]},
        {"path": "a.flac", "text": "Red.", "task": "QA", "Q": "Which?"},
    ]
    (folder / "stage1.json").write_text(json.dumps({"annotation": annotations}))
    source = ManifestSource(str(folder / "stage1.json"), "all", AudioRules())
    examples = [source[i] for i in range(4)]
    assert [e.task for e in examples] == ["asr", "audiocaption", "speaker_verification", "QA"]
    assert [e.question for e in examples] == ["", "", "", "Which?"]
    assert len({e.id for e in examples}) == 4
    assert examples[0].transcript == "Hello." and not examples[1].transcript
    assert len(examples[2].audio) == 32_000 + GAP_SAMPLES + 20_000


def test_manifest_at_a_url(bucket, folder):
    with fsspec.open("gs://lab/m/train.jsonl", "w") as file:
        file.write(json.dumps({"audio": "a.flac", "answer": "x"}) + "\n\n")
    with fsspec.open("gs://lab/m/a.flac", "wb") as file:
        file.write((folder / "a.flac").read_bytes())
    corpus = corpora.open_corpus("files", "gs://lab/m")
    assert corpus.evaluation_sources("train") == ["train"]
    np.testing.assert_array_equal(corpus.open_source("train", "train")[0].audio, CLIP)


def test_a_network_that_fails_is_tried_again(monkeypatch):
    """A read succeeds after two failures, and gives up after three."""
    file, failures = io.BytesIO(), [OSError("reset")] * 2
    soundfile.write(file, CLIP, 16_000, format="FLAC")

    def read_bytes(url):
        if failures:
            raise failures.pop()
        return file.getvalue()

    monkeypatch.setattr(paths, "read_bytes", read_bytes)
    monkeypatch.setattr(audio, "RETRY_DELAYS", (0.0, 0.0))
    np.testing.assert_array_equal(read_clip([AudioSpan("gs://bucket/a.flac")], AudioRules()), CLIP)
    failures.extend([OSError("reset")] * 3)
    with pytest.raises(BadExample) as caught:
        read_clip([AudioSpan("gs://bucket/a.flac")], AudioRules())
    assert caught.value.reason == "unreachable" and not failures


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"audio": "a.flac"}, "the answer is missing or empty"),
        ({"audio": "a.flac", "answer": 3}, "answer=3: must be a string"),
        ({"audio": "a.flac", "anser": "x"}, "unknown field 'anser'"),
        ({"audio": {"file": "a"}, "answer": "x"}, "must be a path, or an object"),
        ({"audio": {"path": "a", "start": 3, "end": 2}, "answer": "x"}, "start=3, end=2: must be 0 <= start < end"),
        ([1], "the line is not a JSON object"),
    ],
)
def test_wrong_manifest_lines_are_rejected(line, message):
    with pytest.raises(BadExample, match=message) as caught:
        entry_from_json(line, 0)
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize(
    "line", [{"path": "a"}, {"text": "a"}, {"path": "a", "text": " "}, "a", {"path": 1, "text": "a"}]
)
def test_wrong_annotations_are_rejected(line):
    with pytest.raises(BadExample):
        entry_from_annotation(line, 0)


def test_an_incomplete_line_does_not_affect_other_lines(folder):
    (folder / "some.jsonl").write_text('{"answer": "a", "prompt": "?"}\n{"answer": \n\n{"answer": "c", "prompt": "?"}')
    manifest = Manifest(str(folder / "some.jsonl"))
    assert [manifest[0].answer, manifest[2].answer, len(manifest)] == ["a", "c", 3]
    with pytest.raises(BadExample, match=r"line 2 of .*some\.jsonl"):
        manifest[1]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("[1]", "a.json"),
        ("{", "a.json"),
        ('{"annotation": 5}', "a.json"),
        ('{"annotation": {}}', "a.json"),
        (None, "gone.jsonl"),
    ],
)
def test_unreadable_manifests_raise_user_error(tmp_path, content, name):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        Manifest(str(tmp_path / name))


def test_rejection_reasons_of_bad_audio(folder):
    (folder / "empty.wav").write_bytes(b"")
    (folder / "noise.wav").write_bytes(b"RIFF but no more")
    soundfile.write(folder / "zeros.wav", np.zeros(16_000, np.int16), 16_000)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    reasons = {}
    for name in ("empty", "noise", "zeros", "nan", "gone"):
        with pytest.raises(BadExample) as caught:
            read_clip([AudioSpan(str(folder / f"{name}.wav"))], AudioRules())
        reasons[name] = caught.value.reason
    assert reasons == {
        "empty": "empty", "noise": "undecodable", "zeros": "silent", "nan": "not finite", "gone": "missing",
    }  # fmt: skip


def test_audio_rules(folder):
    stereo = [AudioSpan(str(folder / "b.wav"))]
    np.testing.assert_array_equal(read_clip(stereo, AudioRules()), CLIP[:20_000])
    with pytest.raises(BadExample, match=r"silent: the mean of the channels of .*b\.wav is silent"):
        read_clip(stereo, AudioRules(channels="mean"))
    assert len(fit_clip(CLIP[:100], AudioRules())) == 16_000
    with pytest.warns(AudioWarning, match="clips are cut to the window of 1 s, because too_long is truncate"):
        assert len(fit_clip(CLIP, AudioRules(maximum_seconds=1, too_long="truncate"))) == 16_000
    assert len(fit_clip(CLIP, AudioRules(maximum_seconds=1, too_long="chunk"))) == 32_000
    for policy in ("drop", "error"):
        with pytest.raises(BadExample, match="too long"):
            fit_clip(CLIP, AudioRules(maximum_seconds=1, too_long=policy))


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "b", "audio": "a.flac", "answer": "party \\ud83c"}',
        '{"id": "b\\udcff", "audio": "a.flac", "answer": "x"}',
        '{"id": "b", "audio": "caf\\udce9.wav", "answer": "x"}',
        '{"id": "b", "audio": ["a.flac", {"path": "\\ud83c.wav"}], "answer": "x"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "prompt": "\\udc00"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "task": "\\udc00"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "question": "\\udc00"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "transcript": "\\udc00"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "\\udc00": 1}',
        '{"id": "b", "audio": {"path": "a.flac", "start": 0.5, "end": NaN}, "answer": "x"}',
        '{"id": "b", "audio": {"path": "a.flac", "start": NaN, "end": 1.0}, "answer": "x"}',
        '{"id": "b", "audio": {"path": "a.flac", "start": 0, "end": Infinity}, "answer": "x"}',
        '{"id": "b", "audio": {"path": "a.flac", "start": -Infinity, "end": 1}, "answer": "x"}',
        '{"id": "b", "audio": {"path": "a.flac", "start": 0, "end": 1' + "0" * 400 + '}, "answer": "x"}',
        '{"id": "b", "audio": {"path": "a.flac", "start": 0, "end": 1' + "0" * 5000 + '}, "answer": "x"}',
        '{"id": "b", "audio": {"path": "a.flac", "start": true, "end": 3}, "answer": "x"}',
        '{"id": "b", "audio": {"path": "a.flac", "start": -1}, "answer": "x"}',
        '{"id": "b", "audio": {"path": ""}, "answer": "x"}',
        '{"id": "b", "audio": null, "answer": "x", "task": "asr"}',
        '{"id": "b", "audio": [], "answer": "x", "task": "asr"}',
        '{"id": "b", "answer": "x", "task": "asr"}',
        '{"id": "b", "audio": null, "answer": "x"}',
        '{"id": "b", "audio": null, "answer": "x", "task": "audiocaption", "prompt": "What?"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "task": "text", "prompt": "What?"}',
        '{"id": "b", "answer": "x"}',
        '{"id": "b", "answer": "x", "prompt": "Where is <Speech><SpeechHere></Speech>?"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "prompt": "<SpeechHere> or <SpeechHere>?"}',
        '{"id": "b", "audio": "a.flac", "answer": "x", "task": "QA", "question": "<SpeechHere>?"}',
        '{"id": "b", "audio": ' + "[" * 100_000 + "]" * 100_000 + ', "answer": "x"}',
        '{"broken',
    ],
)
def test_a_bad_line_is_rejected_by_the_number_of_the_line(folder, line):
    """Blank lines are counted, and the lines around the bad one are read."""
    good = '{"id": "g", "audio": "a.flac", "answer": "x"}'
    (folder / "some.jsonl").write_text(f"\n\n{good}\n\n{line}\n{good}\n")
    manifest = Manifest(str(folder / "some.jsonl"))
    assert len(manifest) == 3 and manifest[0] == manifest[2]
    with pytest.raises(BadExample, match=r"line 5 of .*some\.jsonl: ") as caught:
        manifest[1]
    assert caught.value.reason == "invalid" and len(str(caught.value)) < 1000
    str(caught.value).encode()  # does not repeat surrogates


def test_a_surrogate_in_an_annotation_is_rejected(folder):
    (folder / "a.json").write_text(
        '{"annotation": [{"path": "a.flac", "text": "\\ud83c"}, {"path": "a.flac", "text": "x"}]}'
    )
    manifest = Manifest(str(folder / "a.json"))
    assert manifest[1].answer == "x"
    with pytest.raises(BadExample, match=r"annotation 1 of .*unpaired surrogate"):
        manifest[0]


def test_surrogate_pairs_are_text(folder):
    (folder / "some.jsonl").write_text('{"audio": "a.flac", "answer": "party \\ud83c\\udf89"}\n')
    assert Manifest(str(folder / "some.jsonl"))[0].answer == "party \U0001f389"


def test_text_only_lines(folder):
    """A line without the field `audio` and without a task has the task "text"."""
    path = write_manifest(
        folder, {"prompt": "Who?", "answer": "Goethe"}, {"audio": None, "task": "text", "prompt": "Who?", "answer": "x"}
    )
    assert [(e.task, e.audio) for e in map(ManifestSource(path, "mine", AudioRules()).__getitem__, (0, 1))] == [
        ("text", None), ("text", None),
    ]  # fmt: skip


def test_a_path_that_is_too_long_is_missing(folder):
    """Checks a line whose audio and answer are swapped."""
    path = write_manifest(folder, {"audio": "the words that were said " * 400, "answer": "a.flac"})
    with pytest.raises(BadExample, match="are audio and answer swapped") as caught:
        ManifestSource(path, "mine", AudioRules())[0]
    assert caught.value.reason == "missing" and len(str(caught.value)) < 500


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["some.jsonl", "some.json"])
def test_wider_encodings_are_named(folder, encoding, name):
    text = '{"audio": "a.flac", "answer": "x"}\n' if name == "some.jsonl" else '{"annotation": []}'
    (folder / name).write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="is not UTF-8: convert it, or save it as UTF-8"):
        Manifest(str(folder / name))


def test_a_byte_order_mark_is_accepted(folder):
    line = b'{"audio": "a.flac", "answer": "x"}\n'
    for content in (line, b"\n" + line):
        (folder / "some.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
        manifest = Manifest(str(folder / "some.jsonl"))
        assert len(manifest) == 1 and manifest[0].answer == "x"
    (folder / "a.json").write_bytes(b'\xef\xbb\xbf{"annotation": [{"path": "a.flac", "text": "y"}]}')
    assert Manifest(str(folder / "a.json"))[0].answer == "y"


def test_latin_1_is_rejected_by_line(folder):
    good = b'{"audio": "a.flac", "answer": "x"}\n'
    (folder / "some.jsonl").write_bytes(good + b'{"audio": "a.flac", "answer": "caf\xe9"}\n' + good)
    manifest = Manifest(str(folder / "some.jsonl"))
    assert manifest[2].answer == "x"
    with pytest.raises(BadExample, match=r"line 2 of .* not UTF-8 \(byte 0xe9"):
        manifest[1]
    (folder / "a.json").write_bytes(b'{"annotation": [{"path": "caf\xe9", "text": "x"}]}')
    with pytest.raises(UserError, match=r"a\.json is not UTF-8 \(byte 0xe9"):
        Manifest(str(folder / "a.json"))
