"""Text to token ids and back, behind one small interface."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Protocol

import sentencepiece

from salmonn_jax.errors import UserError, import_optional


class Tokenizer(Protocol):
    """What the rest of the program knows of a tokenizer.

    `prefix` is what the language model was taught a text begins with: `<s>`, or nothing.
    """

    prefix_tokens: tuple[int, ...]
    bos_token_id: int
    eos_token_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special tokens are added."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""

    def token_to_id(self, piece: str) -> int:
        """The id of one piece of the vocabulary. Raises UserError if it has none."""


class SentencePieceTokenizer:
    """A `tokenizer.model`, used as the slow `LlamaTokenizer` uses it. Picklable, so that data workers may hold it."""

    def __init__(self, model_proto: bytes):
        self._model = model_proto
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        self.bos_token_id, self.eos_token_id = self._processor.bos_id(), self._processor.eos_id()
        self.vocab_size = self._processor.vocab_size()
        self.prefix_tokens = (self.bos_token_id,)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        # An embedding table may have rows beyond the vocabulary, which a model should not, but can, choose.
        kept = [int(i) for i in ids if i not in (self.bos_token_id, self.eos_token_id) and i < self.vocab_size]
        return self._processor.decode(kept)

    def token_to_id(self, piece: str) -> int:
        found = self._processor.piece_to_id(piece)
        if found == self._processor.unk_id():
            raise UserError(f"the tokenizer has no piece {piece!r}")
        return found

    def __reduce__(self):
        return SentencePieceTokenizer, (self._model,)


class HuggingFaceTokenizer:
    """A Hugging Face `tokenizer.json` (byte-level BPE and others). Picklable.

    Args:
      definition: the contents of `tokenizer.json`.
      bos, eos: the tokens that begin a text and end an answer.

    Raises:
      UserError: the package `tokenizers` is not installed, or the vocabulary lacks one of the two.
    """

    def __init__(self, tokenizer_json: str, bos_token: str, eos_token: str):
        tokenizers = import_optional("tokenizers", "convert")
        self._arguments = tokenizer_json, bos_token, eos_token
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self.bos_token_id, self.eos_token_id = self.token_to_id(bos_token), self.token_to_id(eos_token)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.prefix_tokens = tuple(i for i in self._tokenizer.encode("").ids if i == self.bos_token_id)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_to_id(self, piece: str) -> int:
        found = self._tokenizer.token_to_id(piece)
        if found is None:
            raise UserError(f"the tokenizer has no piece {piece!r}")
        return found

    def __reduce__(self):
        return HuggingFaceTokenizer, self._arguments


def load_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """Reads the tokenizer of a model directory or corpus cache. Raises UserError if there is none.

    Where there are both files, `tokenizer.model` is what the original reads; `tokenizer.json` is taken if it knows
    tokens that were added later.
    """
    directory = pathlib.Path(directory)
    model, definition = directory / "tokenizer.model", directory / "tokenizer.json"
    if model.is_file():
        found = _load_sentencepiece(model)
        return (
            _load_huggingface(directory)
            if definition.is_file() and _max_added_token_id(definition) >= found.vocab_size
            else found
        )
    if definition.is_file():
        return _load_huggingface(directory)
    raise UserError(f"no tokenizer.model and no tokenizer.json in {directory}")


def _max_added_token_id(path: pathlib.Path) -> int:
    """The highest id of the added tokens of a `tokenizer.json`; -1 if there are none."""
    try:
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
        return max((token["id"] for token in added), default=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a tokenizer: {error}") from None


def _load_sentencepiece(path: pathlib.Path) -> Tokenizer:
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is not a sentencepiece model: {error}") from None


def _load_huggingface(directory: pathlib.Path) -> Tokenizer:
    """Which tokens are special stands beside `tokenizer.json`, in `tokenizer_config.json`."""
    path = directory / "tokenizer_config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
        bos, eos = (named.get(name) for name in ("bos_token", "eos_token"))
        bos, eos = (token["content"] if isinstance(token, dict) else token for token in (bos, eos))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); it names the special tokens of tokenizer.json") from None
    if not bos or not eos:
        raise UserError(f"{path} names no {'eos_token' if bos else 'bos_token'}; add the one the model knows")
    try:
        return HuggingFaceTokenizer((directory / "tokenizer.json").read_text(encoding="utf-8"), bos, eos)
    except UserError:
        raise
    except Exception as error:  # the only kind that the package raises
        raise UserError(f"{directory / 'tokenizer.json'} is not a tokenizer: {error}") from None
