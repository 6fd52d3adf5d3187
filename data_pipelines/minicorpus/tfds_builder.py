"""The TFDS builder: one configuration per source of the mixture, records in ArrayRecord files. No TensorFlow."""

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
from salmonn_jax.audio_files import encode_flac
from salmonn_jax.config import SAMPLE_RATE


class Minicorpus(tfds.core.GeneratorBasedBuilder):
    """Questions about real recordings, made for a model that learns to hear in minutes.

    Args:
      recordings: the file that `Recordings.save` wrote.
      modules: a folder to import the synthesiser of tunes from where it is not installed.
      on_example: called after each example made.
      kwargs: `config`, the name of a source, and `data_dir`, as for every builder.
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
            "audio": tfds.features.Tensor(shape=(), dtype=np.object_),  # FLAC; no bytes for a text-only example
            "prompt": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "task": tfds.features.Text(),
            "transcript": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(statistics=self._statistics),  # written when the records are
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the recordings are there already
        recordings = load(self._recordings)
        splits = {}
        for split in clips.SIZES[self.builder_config.name]:
            made = generate_examples(recordings, self.builder_config.name, split, self._modules)
            first = next(made, None)
            if first is not None:
                splits[split] = self._records(split, itertools.chain([first], made))
        return splits

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError  # `_split_generators` gives the generators itself

    def _records(self, split: str, made: Iterable[GeneratedExample]) -> Iterator[tuple[str, dict]]:
        summary = self._statistics.setdefault(split, {})
        for clip in made:
            example = clip.example
            row = summary.setdefault(example.task, {"clips": 0, "seconds": 0.0, "voices": set(), "recordings": set()})
            row["clips"] += 1
            row["seconds"] += 0 if example.audio is None else len(example.audio) / SAMPLE_RATE
            row["voices"].update({clip.voice} - {""})
            row["recordings"].update(clip.recordings)
            self._on_example()
            yield example.id, _to_record(example)
        for row in summary.values():
            row["seconds"] = round(row["seconds"], 2)
            row["voices"], row["recordings"] = sorted(row["voices"]), sorted(row["recordings"])


def generate_examples(
    recordings: Recordings, source: str, split: str, modules: pathlib.Path
) -> Iterator[GeneratedExample]:
    """Makes the clips of one split of a source, in order. A function of its arguments and `clips.SEED` alone."""
    sizes = clips.SIZES[source][split]
    if source == "music":
        return nonspeech.music(recordings, split, sizes, modules)
    maker = {
        "numbers": speech.numbers,
        "prompts": speech.prompts,
        "sounds": nonspeech.sounds,
        "speech_over_sound": speech.speech_over_sound,
        "reading": text_only.reading,
    }[source]
    return maker(recordings, split, sizes)


def _to_record(example: Example) -> dict:
    return {
        "id": example.id,
        "audio": b"" if example.audio is None else encode_flac(example.audio),
        "prompt": example.prompt,
        "answer": example.answer,
        "task": example.task,
        "transcript": example.transcript,
    }
