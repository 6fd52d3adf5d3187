"""Registry of the corpora that a configuration can name in `data.corpus`. Training and evaluation open them here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence

from data_pipelines import minicorpus, utterances
from data_pipelines.examples import Example
from data_pipelines.sources import tones
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.manifest import ManifestSource
from data_pipelines.sources.prepared import open_split, split_names
from data_pipelines.sources.tfds import TfdsSource
from data_pipelines.sources.tfds import split_names as tfds_split_names
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.paths import Path, PathLike, as_path, check_readable


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A set of data sources, with the tokenizer that was trained on them.

    Attributes:
      open_source: (source, split) -> random-access sequence of examples.
      has_split: (source, split) -> whether the source has the split.
      evaluation_sources: split -> names of the sources to evaluate in this split: those with audio. The corpus "files"
        lists every source that has the split, with or without audio.
      tokenizer_dir: directory of the tokenizer; None if the tokenizer comes with a model.
      notes: sentences for reports that describe the held-out data.
    """

    open_source: Callable[[str, str], Sequence[Example]]
    has_split: Callable[[str, str], bool]
    evaluation_sources: Callable[[str], Sequence[str]]
    tokenizer_dir: Path | None
    notes: Sequence[str]


def _minicorpus(data_dir: Path) -> Corpus:
    return Corpus(
        open_source=lambda source, split: minicorpus.open_source(data_dir, source, split),
        has_split=lambda source, split: split in minicorpus.splits(data_dir, source),
        evaluation_sources=lambda split: minicorpus.sources_with_audio(data_dir, split),
        tokenizer_dir=data_dir,
        notes=minicorpus.notes(data_dir),
    )


def _utterances(data_dir: Path) -> Corpus:
    return Corpus(
        open_source=lambda source, split: utterances.open_source(data_dir, source, split),
        has_split=lambda source, split: split in utterances.splits(data_dir, source),
        evaluation_sources=lambda split: utterances.sources_with_audio(data_dir, split),
        tokenizer_dir=None,
        notes=utterances.notes(data_dir),
    )


def _tones(data_dir: Path) -> Corpus:
    tones.train_tokenizer(data_dir)
    return Corpus(
        open_source=tones.ToneSource,
        has_split=lambda source, split: split in tones.SIZES,
        evaluation_sources=lambda split: ["tones"] if split in tones.SIZES else [],
        tokenizer_dir=data_dir,
        notes=tones.NOTES,
    )


def _files(data_dir: str, rules: AudioRules) -> Corpus:
    """Opens the corpus of all sources in a directory or URL.

    A source NAME is one of
      NAME/ with the splits that `launch.prepare` wrote;
      NAME.tfds.json, the description of a TFDS data set;
      manifests: NAME.jsonl or NAME.json for the split "train", NAME.SPLIT.jsonl or NAME.SPLIT.json for other splits.
    """
    root = as_path(data_dir)

    def location(source: str, split: str) -> str | None:
        stem = source if split == "train" else f"{source}.{split}"
        for name in (source, f"{source}.tfds.json", f"{stem}.jsonl", f"{stem}.json"):
            if (root / name).exists():
                return str(root / name)
        return None

    def open_source(source: str, split: str) -> Sequence[Example]:
        path = location(source, split)
        if path is None:
            raise UserError(
                f"{data_dir} has no source {source!r} with the split {split!r}; it must be {source}/, "
                f"{source}.tfds.json or a manifest"
            )
        if path.endswith(".tfds.json"):
            return TfdsSource(path, source, split, rules)
        if path.endswith((".json", ".jsonl")):
            return ManifestSource(path, source, rules)
        return open_split(path, source, split)

    def has_split(source: str, split: str) -> bool:
        path = location(source, split)
        if path is None or (path.endswith((".json", ".jsonl")) and not path.endswith(".tfds.json")):
            return path is not None
        with contextlib.suppress(UserError):
            return split in (tfds_split_names if path.endswith(".tfds.json") else split_names)(path)
        return False

    def evaluation_sources(split: str) -> list[str]:
        names = {path.name.split(".")[0] for path in root.iterdir()}
        return sorted(name for name in names if has_split(name, split))

    return Corpus(
        open_source=open_source,
        has_split=has_split,
        evaluation_sources=evaluation_sources,
        tokenizer_dir=None,
        notes=(),
    )


CORPORA: dict[str, Callable[[str, AudioRules], Corpus]] = {
    "minicorpus": lambda data_dir, rules: _minicorpus(as_path(data_dir)),
    "utterances": lambda data_dir, rules: _utterances(as_path(data_dir)),
    "tones": lambda data_dir, rules: _tones(as_path(data_dir)),
    "files": _files,
}


def open_corpus(name: str, data_dir: PathLike, rules: AudioRules = AudioRules()) -> Corpus:  # noqa: B008
    """Opens a corpus.

    Args:
      name: name of the corpus, a key of `CORPORA`.
      data_dir: directory of the corpus, on a local disk or in a bucket.
      rules: rules by which the corpus "files" reads clips.

    Raises:
      UserError: the name is unknown, the corpus is not prepared, or its bucket cannot be reached.
    """
    if name not in CORPORA:
        raise unknown_name("corpus", name, CORPORA)
    check_readable(as_path(data_dir))
    return CORPORA[name](os.fspath(data_dir), rules)
