"""Tests of sources that read TFDS data sets of other projects. The data set is built here without TensorFlow."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
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
    moods = {"folder": str(builder.data_path), "answer": "mood", "task": "emotion_recognition", "question": "text"}
    (folder / "moods.tfds.json").write_text(json.dumps(moods))
    return folder


def test_clips_texts_and_class_labels(folder):
    corpus = corpora.open_corpus("files", folder)
    assert corpus.evaluation_sources("train") == ["moods", "toy"]
    examples = [corpus.open_source("toy", "train")[i] for i in (0, 2)]
    assert all(example.answer in ("hi",) for example in examples)
    assert {len(example.audio) for example in examples} == {16_000}  # 8000 samples at 8 kHz, resampled
    moods = pickle.loads(pickle.dumps(corpus.open_source("moods", "train")))
    answers = []
    for i in range(3):
        try:
            answers.append(moods[i].answer)
            assert moods[i].audio is None and moods[i].question == "hi"
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
    ],
)
def test_wrong_descriptions_raise_user_error(folder, tmp_path, changes, split, message):
    description = json.loads((folder / "toy.tfds.json").read_text()) | changes
    (tmp_path / "x.tfds.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        TfdsSource(str(tmp_path / "x.tfds.json"), "x", split, AudioRules())
