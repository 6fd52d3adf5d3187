"""The corpora a configuration can name."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from data_pipelines import minicorpus
from data_pipelines.examples import Example
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sources of examples, and the tokenizer that was made with them."""

    read: Callable[[str, str], Sequence[Example]]  # (source, split) -> random access
    tokenizer: pathlib.Path  # directory that holds it


CORPORA: dict[str, Callable[[pathlib.Path], Corpus]] = {
    "minicorpus": lambda cache: Corpus(lambda source, split: minicorpus.read(cache, source, split), cache),
}


def open_corpus(data: DataConfig) -> Corpus:
    """Opens the corpus a configuration names. Raises UserError if it is unknown or was not prepared."""
    if not data.corpus:
        raise UserError("this configuration names no corpus; set data.corpus, data.cache and data.mixture.NAME=SHARE")
    if data.corpus not in CORPORA:
        raise unknown_name("corpus", data.corpus, CORPORA)
    return CORPORA[data.corpus](pathlib.Path(data.cache))
