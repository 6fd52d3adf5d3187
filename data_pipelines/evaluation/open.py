"""Opens the data sets that the command line of an evaluation names: manifests, prepared data sets and corpora."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from data_pipelines import corpora
from data_pipelines.evaluation.rows import NamedSource
from data_pipelines.evaluation.sources import open_rows
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.manifest import ManifestSource
from data_pipelines.sources.prepared import open_split, split_names
from salmonn_jax.errors import UserError
from salmonn_jax.paths import Path, absolute

DEFAULT_SPLITS = ("test", "unheard")
MANIFEST_SPLIT = "test"  # split of a manifest whose name has none


def open_manifests(locations: Sequence[Path], splits: Sequence[str] | None, rules: AudioRules) -> list[NamedSource]:
    """Opens manifests, and directories of data sets.

    Args:
      locations: each is a manifest (`.jsonl`), an annotation file of the original (`.json`), a data set made by
        `launch.prepare`, or a directory with any of these (see `data_pipelines.corpora`).
      splits: splits of the data sets in directories; None for "test" and "unheard", and for every split but "train" of
        a prepared data set.
      rules: rules by which clips are read.

    Raises:
      UserError: a location does not exist, is given twice, or has no such split.
    """
    repeated = [path for path, count in collections.Counter(map(absolute, locations)).items() if count > 1]
    if repeated:
        raise UserError(f"--manifest {repeated[0]} is given twice; omit one")
    if splits and not any(path.is_dir() for path in locations):
        raise UserError("--splits chooses splits of directories, but --manifest names only files; omit it")
    sources: list[NamedSource] = []
    for path in locations:
        if path.is_dir():
            sources += _open_directory(path, splits, rules)
        else:
            sources.append(_open_manifest(path, rules))
    return _with_unique_names(sources)


def open_corpus(
    name: str, data_dir: Path, splits: Sequence[str], rules: AudioRules
) -> tuple[list[NamedSource], Sequence[str]]:
    """Opens the data sets with audio of a corpus.

    Args:
      name: name of the corpus.
      data_dir: directory of the corpus.
      splits: splits to evaluate.
      rules: rules by which clips are read.

    Returns:
      The data sets, and notes about them.

    Raises:
      UserError: the corpus does not exist, or has no data set with these splits.
    """
    corpus = corpora.open_corpus(name, data_dir, rules)
    sources = [
        NamedSource(
            source, split, f"{data_dir}/{source}", open_rows(corpus.open_source(source, split), f"{source} {split}")
        )
        for split in splits
        for source in corpus.evaluation_sources(split)
    ]
    if not sources:
        raise UserError(f"{data_dir} has no data set with the split {' or '.join(splits)}; choose others with --splits")
    return sources, corpus.notes


def _open_manifest(path: Path, rules: AudioRules) -> NamedSource:
    """Opens a manifest. NAME.SPLIT.jsonl is the split SPLIT of the source NAME."""
    if path.suffix not in (".jsonl", ".json"):
        kind = "is neither a directory nor a" if path.exists() else "does not exist; it must be a directory or a"
        raise UserError(f"--manifest {path} {kind} manifest (.jsonl, .json)")
    name, _, split = path.stem.partition(".")
    location = str(path)
    return NamedSource(
        name, split or MANIFEST_SPLIT, location, open_rows(ManifestSource(location, name, rules), location)
    )


def _open_directory(path: Path, splits: Sequence[str] | None, rules: AudioRules) -> list[NamedSource]:
    if not (path / "dataset_info.json").is_file():
        return open_corpus("files", path, splits or DEFAULT_SPLITS, rules)[0]
    splits = splits or [split for split in split_names(path) if split != "train"]
    if not splits:
        raise UserError(f"{path} has only the split train; to evaluate it, add --splits train")
    return [
        NamedSource(path.name, split, str(path), open_rows(open_split(path, path.name, split), f"{path} {split}"))
        for split in splits
    ]


def _with_unique_names(sources: Sequence[NamedSource]) -> list[NamedSource]:
    """Adds the name of the directory to the names of sources that would have the same name and split."""
    counts = collections.Counter((source.name, source.split) for source in sources)
    return [
        source._replace(name=f"{_parent_name(source.location)}/{source.name}") if counts[source[:2]] > 1 else source
        for source in sources
    ]


def _parent_name(location: str) -> str:
    return location.rstrip("/").split("/")[-2] if "/" in location else "."
