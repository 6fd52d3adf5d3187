"""What a record of a data set holds: the texts of an example and its clip, compressed without loss. No TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np

from data_pipelines.examples import TEXT_FIELDS, BadExample, Example
from salmonn_jax.audio_files import AudioError, encode_flac, load_audio

AudioEncoding = Literal["flac", "pcm"]
_PCM = np.dtype("<i2")


def decode_record_flac(data: bytes) -> np.ndarray:
    """Decodes the FLAC file of a record to int16[samples] at 16 kHz. Raises BadExample if the file is broken."""
    try:
        return load_audio(data)
    except AudioError as error:
        raise BadExample(error.reason, f"the FLAC data of a record: {error}") from None


@functools.cache
def features():
    """The features of TFDS that records have."""
    import tensorflow_datasets as tfds  # slow to import

    texts = {name: tfds.features.Text() for name in (*TEXT_FIELDS, "coding")}
    return tfds.features.FeaturesDict({"audio": tfds.features.Tensor(shape=(), dtype=np.object_), **texts})


@functools.cache
def _serializer():
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(features().get_serialized_info())


def to_record(example: Example, encoding: AudioEncoding) -> bytes:
    """An example as it is stored. The source is not: it is given when a data set is read."""
    record = {name: getattr(example, name) for name in TEXT_FIELDS}
    if example.audio is None:
        record |= {"audio": b"", "coding": ""}
    else:
        audio = encode_flac(example.audio) if encoding == "flac" else example.audio.astype(_PCM).tobytes()
        record |= {"audio": audio, "coding": encoding}
    # Not `features().serialize_example`: the order of its bytes is another in every process.
    message = _serializer().get_tf_example(features().encode_example(record))
    return message.SerializeToString(deterministic=True)


def from_record(record: bytes, source: str, *, decode_audio: bool = True) -> Example:
    """The example that is stored as `record`.

    Args:
      record: as `to_record` made it, or a builder of its own that has fewer texts; audio is FLAC where it does not say.
      source: goes into the example.
      hear: False leaves the audio out, which is fast.
    """
    fields = _fields(record)
    texts = {name: fields[name].decode() for name in TEXT_FIELDS if name in fields}
    audio = fields["audio"] if decode_audio else b""
    return Example(audio=_decoded(audio, fields.get("coding", b"flac")) if audio else None, source=source, **texts)


def _fields(record: bytes) -> Mapping[str, bytes]:
    """What TFDS would parse by the features, in a fifth of the time: all that are wanted are bytes."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(record).features.feature
    wanted = (name for name in (*TEXT_FIELDS, "audio", "coding") if name in features)
    return {name: features[name].bytes_list.value[0] for name in wanted}


def _decoded(audio: bytes, coding: bytes) -> np.ndarray:
    return decode_record_flac(audio) if coding == b"flac" else np.frombuffer(audio, _PCM).astype(np.int16)
