"""The corpora a configuration can name."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from data_pipelines import minicorpus, tones
from data_pipelines.examples import Example
from salmonn_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sources of examples, and the tokenizer that was made with them."""

    read: Callable[[str, str], Sequence[Example]]  # (source, split) -> random access
    heard: Callable[[str], Sequence[str]]  # split -> the sources with audio that have it
    tokenizer: pathlib.Path  # directory that holds it
    notes: Sequence[str]  # what its splits hold out, for reports


def _minicorpus(cache: pathlib.Path) -> Corpus:
    return Corpus(
        read=lambda source, split: minicorpus.read(cache, source, split),
        heard=lambda split: minicorpus.heard_sources(cache, split),
        tokenizer=cache,
        notes=minicorpus.notes(cache),
    )


def _tones(cache: pathlib.Path) -> Corpus:
    tones.prepare(cache)
    return Corpus(
        read=tones.Tones,
        heard=lambda split: ["tones"] if split in tones.SIZES else [],
        tokenizer=cache,
        notes=tones.NOTES,
    )


CORPORA: dict[str, Callable[[pathlib.Path], Corpus]] = {"minicorpus": _minicorpus, "tones": _tones}


def open_corpus(name: str, cache: pathlib.Path) -> Corpus:
    """Opens a corpus by name. Raises UserError if it is unknown or was not prepared."""
    if not name:
        raise UserError("the configuration names no corpus; set data.corpus, data.cache and data.mixture.NAME=SHARE")
    if name not in CORPORA:
        raise unknown_name("corpus", name, CORPORA)
    return CORPORA[name](pathlib.Path(cache))
