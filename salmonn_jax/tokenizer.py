"""Text to token ids and back, behind one small interface."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Protocol

import sentencepiece

from salmonn_jax.errors import UserError


class Tokenizer(Protocol):
    """What the rest of the program knows of a tokenizer."""

    bos: int
    eos: int
    vocabulary: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special tokens are added."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""

    def id_of(self, piece: str) -> int:
        """The id of one piece of the vocabulary. Raises UserError if it has none."""


class SentencePieceTokenizer:
    """A `tokenizer.model`, used as the slow `LlamaTokenizer` uses it. Picklable, so that data workers may hold it."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.bos, self.eos = self._processor.bos_id(), self._processor.eos_id()
        self.vocabulary = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids if i not in (self.bos, self.eos)])

    def id_of(self, piece: str) -> int:
        found = self._processor.piece_to_id(piece)
        if found == self._processor.unk_id():
            raise UserError(f"the tokenizer has no piece {piece!r}")
        return found

    def __reduce__(self):
        return SentencePieceTokenizer, (self._model,)


def load_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """Reads the tokenizer of a model directory or corpus cache. Raises UserError if there is none."""
    path = pathlib.Path(directory) / "tokenizer.model"
    if not path.is_file():
        raise UserError(f"no tokenizer.model in {directory}")
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is not a sentencepiece model: {error}") from None
