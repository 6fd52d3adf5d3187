"""Tests of sources that read TFDS data sets of other projects. The data set is built here without TensorFlow."""

from __future__ import annotations

import importlib.util
import io
import json
import pathlib
import pickle
import tempfile

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from data_pipelines import corpora
from data_pipelines.examples import BadExample
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.tfds import TfdsSource
from salmonn_jax.errors import UserError


class Toy(tfds.core.GeneratorBasedBuilder):
    """Data set of three clips with a text and a class label. The text of the second clip is empty."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "speech": tfds.features.Tensor(shape=(None,), dtype=np.int64),
            "text": tfds.features.Text(),
            "mood": tfds.features.ClassLabel(names=["sad", "glad"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            yield (
                i,
                {"speech": np.arange(8000, dtype=np.int64) * (i + 1), "text": "" if i == 1 else "hi", "mood": i % 2},
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with two descriptions of the data set: `toy` with audio, `moods` without."""
    folder, data_dir = tmp_path_factory.mktemp("toy"), tmp_path_factory.mktemp("built")
    builder = Toy(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    toy = {"folder": str(builder.data_path), "audio": "speech", "rate": 8000, "answer": "text", "task": "asr"}
    (folder / "toy.tfds.json").write_text(json.dumps(toy))
    moods = {"folder": str(builder.data_path), "answer": "mood", "task": "text", "question": "text"}
    (folder / "moods.tfds.json").write_text(json.dumps(moods))
    return folder


def test_clips_texts_and_class_labels(folder):
    corpus = corpora.open_corpus("files", folder)
    assert corpus.evaluation_sources("train") == ["moods", "toy"] and corpus.evaluation_sources("test") == []
    examples = [corpus.open_source("toy", "train")[i] for i in (0, 2)]
    assert all(example.answer in ("hi",) for example in examples)
    assert {len(example.audio) for example in examples} == {16_000}  # 8000 samples at 8 kHz, resampled
    moods = pickle.loads(pickle.dumps(corpus.open_source("moods", "train")))
    answers = []
    for i in range(3):
        try:
            answers.append(moods[i].answer)
            assert moods[i].audio is None and moods[i].prompt == "hi"
        except BadExample as error:
            assert error.reason == "invalid"
    assert answers == ["sad", "sad"]


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"answer": "txt"}, "train", "unknown feature .* 'txt'; did you mean 'text'"),
        ({}, "test", "unknown split of x 'test'"),
        ({"folder": "nowhere"}, "train", "no TFDS data set in nowhere"),
        ({"anser": "text"}, "train", "did you mean 'answer'"),
        ({"rate": None}, "train", "declares no sample rate; set the field rate"),
        ({"rate": 10}, "train", "sample rate of 10 Hz"),
        ({"rate": "8000"}, "train", "rate="),
        ({"bits": 12}, "train", "bits"),
        ({"folder": 3}, "train", "folder=3"),
        ({"audio": ""}, "train", "the task 'asr' needs a feature with audio"),
        ({"task": "text"}, "train", "the task 'text' needs no audio"),
        ({"audio": "", "task": "text"}, "train", "need the field question"),
    ],
)
def test_wrong_descriptions_raise_user_error(folder, tmp_path, changes, split, message):
    description = json.loads((folder / "toy.tfds.json").read_text()) | changes
    (tmp_path / "x.tfds.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        TfdsSource(str(tmp_path / "x.tfds.json"), "x", split, AudioRules())


AUDIO_FEATURE = "tensorflow_datasets.core.features.audio_feature.Audio"


class Music(tfds.core.GeneratorBasedBuilder):
    """Data set of one clip, as samples and as a file of 1 s."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        audio = tfds.features.Tensor(shape=(None,), dtype=self.dtype)
        files = tfds.features.Tensor(shape=(), dtype=np.object_)
        features = {"audio": audio, "file": files, "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        out = io.BytesIO()
        soundfile.write(out, np.full(8000, 0.25), 8000, format="FLAC")
        yield 0, {"audio": self.samples, "file": out.getvalue(), "text": "an A"}


@pytest.fixture
def music(tmp_path):
    """Returns a function that builds a data set with samples in an `Audio` feature of 44.1 kHz, and opens it.

    TFDS itself can only build this feature with TensorFlow, so its description is written here.
    """

    def build(samples, changes, *, audio="audio", feature=True):
        Music.dtype, Music.samples = samples.dtype, samples
        builder = Music(data_dir=tempfile.mkdtemp(dir=tmp_path), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
        if feature:
            path = builder.data_path / "features.json"
            described = json.loads(path.read_text())
            content = {"dtype": str(samples.dtype), "encoding": "none", "sampleRate": "44100"}
            content |= {"shape": {"dimensions": ["-1"]}, "lazyDecode": audio == "file"}
            described["featuresDict"]["features"][audio] = {"pythonClassName": AUDIO_FEATURE, "audio": content}
            path.write_text(json.dumps(described))
        description = {"folder": str(builder.data_path), "audio": audio, "answer": "text", "task": "sound"} | changes
        (tmp_path / "x.tfds.json").write_text(json.dumps(description))
        return TfdsSource(str(tmp_path / "x.tfds.json"), "x", "train", AudioRules())

    return build


def tone(peak: float) -> np.ndarray:
    """Returns 1 s of a tone of 440 Hz at 44.1 kHz."""
    return peak * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)


@pytest.mark.parametrize("rate", [{}, {"rate": 44_100}])
def test_the_sample_rate_is_that_of_the_feature(music, rate):
    source = music(np.round(tone(10_000)).astype(np.int64), rate)
    pcm = pickle.loads(pickle.dumps(source))[0].audio
    assert len(pcm) == 16_000 and np.argmax(np.abs(np.fft.rfft(pcm))) == 440
    assert abs(int(pcm.max()) - 10_000) < 100


def test_a_rate_that_contradicts_the_feature_raises_user_error(music):
    with pytest.raises(UserError, match="rate=16000, but the feature 'audio' declares 44100 Hz"):
        music(np.round(tone(10_000)).astype(np.int64), {"rate": 16_000})


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("bits", [24, 32])
def test_wide_samples_need_their_width(music, dtype, bits):
    samples = np.round(tone(0.3) * (2 ** (bits - 1) - 1)).astype(dtype)
    with pytest.raises(BadExample, match="set the field bits") as caught:
        music(samples, {})[0]
    assert caught.value.reason == "out of range"
    assert abs(int(music(samples, {"bits": bits})[0].audio.max()) - 9830) < 100


def test_floats_of_the_range_of_integers_are_rejected(music):
    with pytest.raises(BadExample, match="float samples up to") as caught:
        music(tone(10_000).astype(np.float32), {})[0]
    assert caught.value.reason == "out of range"
    assert abs(int(music(tone(0.3).astype(np.float32), {})[0].audio.max()) - 9830) < 100


@pytest.mark.parametrize("feature", [True, False])
def test_audio_files_have_their_own_rate(music, feature):
    """Checks a lazily decoded `Audio` feature and a feature of bytes."""
    samples = np.zeros(1, np.int64)
    assert len(music(samples, {}, audio="file", feature=feature)[0].audio) == 16_000
    for field in ("rate", "bits"):
        with pytest.raises(UserError, match=f"{field}=.*holds audio files"):
            music(samples, {field: 16 if field == "bits" else 8000}, audio="file", feature=feature)


def test_a_feature_that_needs_tensorflow_raises_user_error(music, tmp_path, capfd):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed")
    music(np.zeros(1, np.int64), {})
    folder = json.loads((tmp_path / "x.tfds.json").read_text())["folder"]
    path = pathlib.Path(folder) / "features.json"
    described = json.loads(path.read_text())
    video = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image", "image": {"shape": {}}}
    described["featuresDict"]["features"]["frame"] = video
    path.write_text(json.dumps(described))
    capfd.readouterr()
    with pytest.raises(UserError, match="pip install tensorflow") as caught:
        TfdsSource(str(tmp_path / "x.tfds.json"), "x", "train", AudioRules())
    assert "\n" not in str(caught.value) and not "".join(capfd.readouterr())
