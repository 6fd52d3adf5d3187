"""The corpora a configuration can name."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import fsspec

from data_pipelines import minicorpus
from data_pipelines.examples import Example
from data_pipelines.sources import tones
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.manifest import ManifestSource
from data_pipelines.sources.prepared import open_split, split_names
from data_pipelines.sources.tfds import TfdsSource
from salmonn_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sources of examples, and the tokenizer that was made with them."""

    open_source: Callable[[str, str], Sequence[Example]]  # (source, split) -> random access
    sources_with_audio: Callable[[str], Sequence[str]]  # split -> the sources with audio that have it
    tokenizer_dir: pathlib.Path | None  # directory that holds it; None where only a model brings one
    notes: Sequence[str]  # what its splits hold out, for reports


def _minicorpus(data_dir: pathlib.Path) -> Corpus:
    return Corpus(
        open_source=lambda source, split: minicorpus.open_source(data_dir, source, split),
        sources_with_audio=lambda split: minicorpus.sources_with_audio(data_dir, split),
        tokenizer_dir=data_dir,
        notes=minicorpus.notes(data_dir),
    )


def _tones(data_dir: pathlib.Path) -> Corpus:
    tones.train_tokenizer(data_dir)
    return Corpus(
        open_source=tones.ToneSource,
        sources_with_audio=lambda split: ["tones"] if split in tones.SIZES else [],
        tokenizer_dir=data_dir,
        notes=tones.NOTES,
    )


def _files(data_dir: str, rules: AudioRules) -> Corpus:
    """Sources by their names in a directory or URL.

    NAME/ as `launch.prepare` makes it, with splits of its own; NAME.tfds.json, which describes a TFDS data set; or a
    manifest, NAME.jsonl or NAME.json of the split "train", NAME.SPLIT.jsonl or .json of another.
    """
    system, root = fsspec.url_to_fs(data_dir)

    def location(source: str, split: str) -> str | None:
        stem = source if split == "train" else f"{source}.{split}"
        for name in (source, f"{source}.tfds.json", f"{stem}.jsonl", f"{stem}.json"):
            if system.exists(f"{root}/{name}"):
                return f"{data_dir.rstrip('/')}/{name}"
        return None

    def open_source(source: str, split: str) -> Sequence[Example]:
        found = location(source, split)
        if found is None:
            raise UserError(
                f"there is no source {source!r} in {data_dir}: neither {source}/ nor {source}.jsonl or .json"
            )
        if found.endswith(".tfds.json"):
            return TfdsSource(found, source, split, rules)
        if found.endswith((".json", ".jsonl")):
            return ManifestSource(found, source, rules)
        return open_split(found, source, split)

    def has(source: str, split: str) -> bool:
        found = location(source, split)
        if found is None or found.endswith((".json", ".jsonl")):
            return found is not None
        with contextlib.suppress(UserError):
            return split in split_names(found)
        return False

    def sources_with_audio(split: str) -> list[str]:
        names = {path.rstrip("/").rsplit("/", 1)[-1].split(".")[0] for path in system.ls(root, detail=False)}
        return sorted(name for name in names if has(name, split))

    return Corpus(open_source=open_source, sources_with_audio=sources_with_audio, tokenizer_dir=None, notes=())


CORPORA: dict[str, Callable[[str, AudioRules], Corpus]] = {
    "minicorpus": lambda cache, rules: _minicorpus(pathlib.Path(cache)),
    "tones": lambda cache, rules: _tones(pathlib.Path(cache)),
    "files": lambda cache, rules: _files(cache, rules),
}


def open_corpus(name: str, data_dir: str | pathlib.Path, rules: AudioRules = AudioRules()) -> Corpus:  # noqa: B008
    """Opens a corpus by name; its audio is read by the rules. Raises UserError if it is unknown or not prepared."""
    if name not in CORPORA:
        raise unknown_name("corpus", name, CORPORA)
    return CORPORA[name](str(data_dir), rules)
