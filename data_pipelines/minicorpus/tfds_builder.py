"""TFDS builder of the mini-corpus, with one builder configuration for each source. It needs no TensorFlow."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.examples import Example
from data_pipelines.minicorpus import clips, nonspeech, speech, text_only
from data_pipelines.minicorpus.clips import VERSION, GeneratedExample
from data_pipelines.minicorpus.recordings import Recordings, load
from salmonn_jax.audio.files import encode_flac
from salmonn_jax.config import SAMPLE_RATE


class Minicorpus(tfds.core.GeneratorBasedBuilder):
    """Builder of one source of the mini-corpus, in ArrayRecord files.

    Args:
      recordings: file that `Recordings.save` wrote.
      modules: folder from which the synthesiser is imported if it is not installed.
      on_example: called after each generated example.
      kwargs: arguments of every TFDS builder: `config`, the name of the source, and `data_dir`.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in clips.SIZES]  # noqa: RUF012 (TFDS's interface)

    def __init__(
        self, *, recordings: pathlib.Path, modules: pathlib.Path, on_example: Callable[[], object] = bool, **kwargs
    ):
        self._recordings, self._modules, self._on_example = recordings, modules, on_example
        self._statistics: dict = {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "audio": tfds.features.Tensor(shape=(), dtype=np.object_),  # a FLAC file; empty for a text-only example
            "prompt": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "task": tfds.features.Text(),
            "transcript": tfds.features.Text(),
        }
        # `_records` fills the statistics; TFDS writes the metadata after all records.
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(statistics=self._statistics),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # there is nothing to download
        recordings = load(self._recordings)
        splits = {}
        for split in clips.SIZES[self.builder_config.name]:
            examples = generate_examples(recordings, self.builder_config.name, split, self._modules)
            first = next(examples, None)
            if first is not None:
                splits[split] = self._records(split, itertools.chain([first], examples))
        return splits

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError  # `_split_generators` returns the generators

    def _records(self, split: str, generated: Iterable[GeneratedExample]) -> Iterator[tuple[str, dict]]:
        summary = self._statistics.setdefault(split, {})
        for item in generated:
            example = item.example
            row = summary.setdefault(example.task, {"clips": 0, "seconds": 0.0, "voices": set(), "recordings": set()})
            row["clips"] += 1
            row["seconds"] += 0 if example.audio is None else len(example.audio) / SAMPLE_RATE
            row["voices"].update({item.voice} - {""})
            row["recordings"].update(item.recordings)
            self._on_example()
            yield example.id, _to_record(example)
        for row in summary.values():
            row["seconds"] = round(row["seconds"], 2)
            row["voices"], row["recordings"] = sorted(row["voices"]), sorted(row["recordings"])


def generate_examples(
    recordings: Recordings, source: str, split: str, modules: pathlib.Path
) -> Iterator[GeneratedExample]:
    """Generates the examples of one split of a source, in order. They depend only on the arguments and `clips.SEED`.

    Args:
      recordings: the recordings.
      source: name of the source, a key of `clips.SIZES`.
      split: "train", "test" or "unheard".
      modules: folder from which the synthesiser is imported if it is not installed.
    """
    sizes = clips.SIZES[source][split]
    if source == "music":
        return nonspeech.music(recordings, split, sizes, modules)
    generator = {
        "numbers": speech.numbers,
        "prompts": speech.prompts,
        "sounds": nonspeech.sounds,
        "speech_over_sound": speech.speech_over_sound,
        "reading": text_only.reading,
    }[source]
    return generator(recordings, split, sizes)


def _to_record(example: Example) -> dict:
    return {
        "id": example.id,
        "audio": b"" if example.audio is None else encode_flac(example.audio),
        "prompt": example.prompt,
        "answer": example.answer,
        "task": example.task,
        "transcript": example.transcript,
    }
