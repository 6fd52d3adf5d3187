"""Sources that read existing TFDS data sets. A small JSON file maps the features of a data set to those of examples.

    {"folder": "gs://bucket/fluent/1.0.0", "audio": "speech", "rate": 16000, "answer": "text", "task": "asr"}

The data sets must consist of ArrayRecord files (built with `file_format="array_record"`). TensorFlow is only needed if
a data set has a feature that TFDS decodes with TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np

from data_pipelines.examples import BadExample, Example
from data_pipelines.files import read_json
from data_pipelines.sources.audio import AudioRules
from salmonn_jax.audio.files import AudioError, load_audio
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSourceConfig:
    """Mapping from the features of a TFDS data set to the fields of examples.

    Attributes:
      folder: folder of the version of the data set: a path, or a URL that TFDS opens.
      answer: name of the feature with the answer, a text or a class label.
      task: name of the task. It selects the prompt templates and the metric.
      audio: name of the feature with the clip, as samples or as the bytes of an audio file; "" for text-only examples.
      rate: sample rate of clips that are stored as samples, in Hz.
      question: name of the feature that replaces `{}` in the prompt template; "" for none.
    """

    folder: str
    answer: str
    task: str
    audio: str = ""
    rate: int = SAMPLE_RATE
    question: str = ""


class TfdsSource:
    """Random-access sequence of the examples of one split of a TFDS data set.

    It can be pickled. Each process opens the files at its first read.

    Args:
      location: path or URL of the JSON file with the fields of `TfdsSourceConfig`.
      source: name of the source, for the examples.
      split: a split of the data set.
      rules: rules by which clips are read. Only `channels` is used here.

    Raises:
      UserError: the JSON file or the data set is missing, or the data set does not have the split or a feature.
    """

    def __init__(self, location: str, source: str, split: str, rules: AudioRules):
        self._source, self._split, self._rules = source, split, rules
        self._config = _read_config(location)
        self._records = self._features = None
        self._open()

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self._open()[index]
        return Example(
            id=str(int(index)),
            audio=self._clip(record, int(index)) if self._config.audio else None,
            prompt="",
            question=self._text(record, self._config.question) if self._config.question else "",
            answer=self._text(record, self._config.answer),
            task=self._config.task,
            source=self._source,
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None, "_features": None}

    def _open(self):
        if self._records is None:
            import tensorflow_datasets as tfds  # slow to import

            try:
                builder = tfds.builder_from_directory(self._config.folder)
            except (OSError, tfds.core.dataset_info.DatasetInfoFileError):
                raise UserError(
                    f"no TFDS data set in {self._config.folder}; set the field folder to the folder of one version"
                ) from None
            if self._split not in builder.info.splits:
                raise unknown_name(f"split of {self._source}", self._split, builder.info.splits)
            for name in (self._config.answer, self._config.audio, self._config.question):
                if name and name not in builder.info.features:
                    raise unknown_name(f"feature of {self._config.folder}", name, builder.info.features)
            self._features = builder.info.features
            self._records = builder.as_data_source(self._split)
        return self._records

    def _text(self, record: Mapping[str, Any], name: str) -> str:
        value, feature = record[name], self._features[name]
        if hasattr(feature, "int2str"):
            return feature.int2str(int(value))
        text = value.decode() if isinstance(value, bytes) else str(value)
        if not text.strip():
            raise BadExample("invalid", f"the feature {name!r} is empty")
        return text

    def _clip(self, record: Mapping[str, Any], index: int) -> np.ndarray:
        value = record[self._config.audio]
        # TFDS returns 16-bit samples as int64.
        samples = value if isinstance(value, bytes) else (_as_int16(np.asarray(value)), self._config.rate)
        try:
            return load_audio(samples, channels=self._rules.channels)
        except AudioError as error:
            raise BadExample(error.reason, f"record {index}: {error}") from None


def _read_config(location: str) -> TfdsSourceConfig:
    fields = read_json(location, "the description of a TFDS data set")
    try:
        known = {field.name for field in dataclasses.fields(TfdsSourceConfig)}
        unknown = set(fields) - known
        if unknown:
            raise unknown_name(f"field of {location}", sorted(unknown)[0], known)
        return TfdsSourceConfig(**fields)
    except TypeError as error:
        raise UserError(f"{location} does not describe a TFDS data set: {error}") from None


def _as_int16(samples: np.ndarray) -> np.ndarray:
    """Converts int64 samples to int16 if all are in its range; returns other samples unchanged."""
    fits = samples.dtype == np.int64 and np.abs(samples).max(initial=0) <= 32768
    return np.clip(samples, -32768, 32767).astype(np.int16) if fits else samples
