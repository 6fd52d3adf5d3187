"""Sources that read existing TFDS data sets. A small JSON file maps the features of a data set to those of examples.

    {"folder": "gs://bucket/fluent/1.0.0", "audio": "speech", "answer": "text", "task": "asr"}

The data sets must consist of ArrayRecord files (built with `file_format="array_record"`). Audio features are read
without TensorFlow, which is only needed for other features that TFDS decodes with it, such as images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import Any, Literal, SupportsIndex

import numpy as np
from pydantic.dataclasses import dataclass

from data_pipelines.examples import TEXT_ONLY_TASKS, BadExample, Example
from data_pipelines.files import read_json
from data_pipelines.sources.audio import AudioRules
from salmonn_jax.audio.files import load_audio
from salmonn_jax.audio.limits import check_sample_rate
from salmonn_jax.config.typed import STRICT, from_dict
from salmonn_jax.errors import AudioError, UserError, unknown_name
from salmonn_jax.paths import as_path


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TfdsSourceConfig:
    """Mapping from the features of a TFDS data set to the fields of examples.

    Attributes:
      folder: folder of the version of the data set: a path or a gs:// URL.
      answer: name of the feature with the answer, a text or a class label.
      task: name of the task. It selects the prompt templates and the metric.
      audio: name of the feature with the clip, as samples or as the bytes of an audio file; "" for text-only examples.
      rate: sample rate in Hz of clips that are stored as samples. None takes it from the feature, if it declares one.
      bits: width of integer samples; a sample of `2 ** (bits - 1)` is full scale. TFDS stores samples of any width as
        int64. None means 16, or 8 for the types uint8 and int8.
      question: name of the feature that replaces `{}` in the prompt template, or that is the prompt of text-only
        examples; "" for none.
    """

    folder: str
    answer: str
    task: str
    audio: str = ""
    rate: int | None = None
    bits: Literal[8, 16, 24, 32] | None = None
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
      UserError: the JSON file or the data set is missing, the data set does not have the split or a feature, a field
        contradicts the feature, or the sample rate is not known.
    """

    def __init__(self, location: str, source: str, split: str, rules: AudioRules):
        self._source, self._split, self._rules = source, split, rules
        self._location, self._config = location, _read_config(location)
        self._records = self._features = None
        self._open()

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self._open()[index]
        question = self._text(record, self._config.question) if self._config.question else ""
        return Example(
            id=str(int(index)),
            audio=self._clip(record, int(index)) if self._config.audio else None,
            prompt="" if self._config.audio else question,
            question=question,
            answer=self._text(record, self._config.answer),
            task=self._config.task,
            source=self._source,
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None, "_features": None}

    def _open(self):
        if self._records is None:
            builder = _open_builder(self._config.folder)
            if self._split not in builder.info.splits:
                raise unknown_name(f"split of {self._source}", self._split, builder.info.splits)
            for name in (self._config.answer, self._config.audio, self._config.question):
                if name and name not in builder.info.features:
                    raise unknown_name(f"feature of {self._config.folder}", name, builder.info.features)
            self._features = builder.info.features
            if self._config.audio:
                self._rate = _sample_rate(self._config, self._features[self._config.audio], self._location)
            try:
                self._records = builder.as_data_source(self._split)
            except NotImplementedError as error:
                raise UserError(f"{self._config.folder} does not consist of ArrayRecord files: {error}") from None
        return self._records

    def _text(self, record: Mapping[str, Any], name: str) -> str:
        value, feature = record[name], self._features[name]
        if hasattr(feature, "int2str"):
            return feature.int2str(int(value))
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise BadExample("invalid", f"the feature {name!r} is not UTF-8: {error}") from None
        if not text.strip():
            raise BadExample("invalid", f"the feature {name!r} is empty")
        return text

    def _clip(self, record: Mapping[str, Any], index: int) -> np.ndarray:
        value = record[self._config.audio]
        try:
            source = value if isinstance(value, bytes) else (_scale(np.asarray(value), self._config.bits), self._rate)
            return load_audio(source, channels=self._rules.channels)
        except AudioError as error:
            raise BadExample(error.reason, f"record {index} of {self._location}: {error}") from None


def split_names(location: str) -> list[str]:
    """Returns the names of the splits of a TFDS data set.

    Args:
      location: path or URL of the JSON file with the fields of `TfdsSourceConfig`.

    Raises:
      UserError: the JSON file or the data set is missing.
    """
    return list(_open_builder(_read_config(location).folder).info.splits)


@functools.cache
def _read_audio_features_without_tensorflow() -> None:
    """Registers a reader of the feature `Audio` with TFDS, whose own one needs TensorFlow even to be described."""
    import tensorflow_datasets as tfds

    class StoredAudio(tfds.features.Tensor):
        """Samples as they are stored, or the bytes of an audio file if the feature is decoded lazily."""

        ALIASES = ("tensorflow_datasets.core.features.audio_feature.Audio",)
        sample_rate: int | None = None

        @classmethod
        def from_json_content(cls, value: Any) -> StoredAudio:
            if isinstance(value, dict):  # of old versions of TFDS
                fields = {name: value.get(name) for name in ("shape", "dtype", "sample_rate", "lazy_decode")}
                shape, encoding = tuple(fields["shape"]), None
            else:
                fields = {name: getattr(value, name) for name in ("dtype", "sample_rate", "lazy_decode")}
                shape = tuple(None if size == -1 else size for size in value.shape.dimensions)
                encoding = value.encoding or None
            if fields["lazy_decode"]:
                feature = cls(shape=(), dtype=np.object_)
            else:
                feature = cls(
                    shape=shape, dtype=np.dtype(fields["dtype"]), **({"encoding": encoding} if encoding else {})
                )
            feature.sample_rate = int(fields["sample_rate"] or 0) or None
            return feature


def _open_builder(folder: str):
    """Opens a TFDS data set. Raises UserError if there is none, or if it needs TensorFlow, which is not installed."""
    import tensorflow_datasets as tfds  # slow to import

    _read_audio_features_without_tensorflow()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # hides a banner
            return tfds.builder_from_directory(str(as_path(folder)))
    except (OSError, tfds.core.dataset_info.DatasetInfoFileError):
        raise UserError(f"no TFDS data set in {folder}; set the field folder to the folder of one version") from None
    except ImportError as error:
        raise UserError(f"{folder} has a feature that TFDS cannot read ({error}): pip install tensorflow") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} is not a TFDS data set that can be read: {_first_line(error)}") from None


def _sample_rate(config: TfdsSourceConfig, feature: Any, location: str) -> int | None:
    """Returns the sample rate of clips that are stored as samples; None if they are stored as audio files.

    Raises:
      UserError: the rate is unknown, impossible, or differs from that of the feature, or a field does not apply.
    """
    if feature.np_dtype == np.object_:
        for name in ("rate", "bits"):
            if getattr(config, name) is not None:
                raise UserError(
                    f"{location}: {name}={getattr(config, name)}, but the feature {config.audio!r} holds audio files, "
                    "which have their own; remove the field"
                )
        return None
    declared = getattr(feature, "sample_rate", None)
    if declared and config.rate not in (None, declared):
        raise UserError(
            f"{location}: rate={config.rate}, but the feature {config.audio!r} declares {declared} Hz; remove the field"
        )
    rate = config.rate or declared
    if not rate:
        raise UserError(f"{location}: the feature {config.audio!r} declares no sample rate; set the field rate")
    check_sample_rate(rate, f"{location}: the feature {config.audio!r}")
    return rate


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_config(location: str) -> TfdsSourceConfig:
    fields = read_json(location, "the description of a TFDS data set")
    if not isinstance(fields, dict):
        raise UserError(f"{location} does not describe a TFDS data set; it must be a JSON object")
    known = {field.name for field in dataclasses.fields(TfdsSourceConfig)}
    unknown = set(fields) - known
    if unknown:
        raise unknown_name(f"field of {location}", sorted(unknown)[0], known)
    config = from_dict(TfdsSourceConfig, fields, f"{location}: ")
    if bool(config.audio) == (config.task in TEXT_ONLY_TASKS):
        needs = "a feature with audio" if not config.audio else f"no audio; text-only tasks are {TEXT_ONLY_TASKS}"
        raise UserError(f"{location}: the task {config.task!r} needs {needs}")
    if not config.audio and not config.question:
        raise UserError(f"{location}: text-only examples need the field question, the feature with their prompt")
    return config


def _scale(samples: np.ndarray, bits: int | None) -> np.ndarray:
    """Converts integer samples to int16 or float32, by their width. Floats are returned unchanged.

    Args:
      samples: samples of any type.
      bits: width of integer samples; None means 8 for 8-bit types and 16 for others.

    Raises:
      AudioError: a sample is wider than `bits`.
    """
    if samples.dtype.kind not in "iu":
        return samples
    if samples.dtype == np.uint8 and bits in (None, 8):
        return samples  # unsigned samples of 8 bits are centred at 128
    bits = bits or min(8 * samples.dtype.itemsize, 16)
    peak = max(int(samples.max(initial=0)), -int(samples.min(initial=0)))
    if peak > 2 ** (bits - 1):
        raise AudioError(
            "out of range", f"samples up to {peak} are wider than {bits} bits; set the field bits to 24 or 32"
        )
    if bits == 16:
        return np.minimum(samples, 32767).astype(np.int16)
    return (samples / 2.0 ** (bits - 1)).astype(np.float32)
