"""Tokenizers: one interface, with implementations for sentencepiece and Hugging Face `tokenizers` files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import sentencepiece

from salmonn_jax.errors import UserError, import_optional
from salmonn_jax.files import refuse_lfs_pointer
from salmonn_jax.paths import Path, PathLike, as_path


@runtime_checkable
class Tokenizer(Protocol):
    """Tokenizer interface used by prompts, data and decoding."""

    prefix_tokens: tuple[int, ...]  # tokens at the start of every text in the model's pretraining: `<s>`, or none
    bos_token_id: int | None  # None for a tokenizer without start token, such as that of Qwen
    eos_token_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`. Special tokens written in it, such as `</s>`, are encoded as such.

        No special token is added.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, skipping special tokens."""

    def token_to_id(self, piece: str) -> int:
        """Returns the id of a token of the vocabulary. Raises UserError if the vocabulary lacks it."""

    def id_to_token(self, token_id: int) -> str:
        """Returns the token with this id; an empty text if the vocabulary has no such id."""

    def is_special(self, token_id: int) -> bool:
        """Returns whether the id is that of a special token, such as `</s>` or `<|im_end|>`."""


class SentencePieceTokenizer:
    """Tokenizer of a sentencepiece `tokenizer.model`, equal to the slow `LlamaTokenizer` of transformers.

    It can be pickled, so it can be sent to data workers.
    """

    def __init__(self, model_proto: bytes):
        self._model = model_proto
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        bos_token_id, self.eos_token_id = self._processor.bos_id(), self._processor.eos_id()
        if self.eos_token_id < 0:
            raise UserError("it has no end token `</s>`, with which answers end")
        self.bos_token_id = bos_token_id if bos_token_id >= 0 else None
        self.vocab_size = self._processor.vocab_size()
        self.prefix_tokens = () if self.bos_token_id is None else (self.bos_token_id,)
        special_tokens = [self.id_to_token(i) for i in (*self.prefix_tokens, self.eos_token_id)]
        self._special_token = re.compile(f"({'|'.join(map(re.escape, special_tokens))})")

    def encode(self, text: str) -> list[int]:
        ids = []
        for i, piece in enumerate(self._special_token.split(text)):  # every second piece is a special token
            ids += [self._processor.piece_to_id(piece)] if i % 2 else self._processor.encode(piece)
        return ids

    @property
    def basic_token_ids(self) -> frozenset[int]:
        """Returns the ids of the tokens `<unk>`, `<s>`, `</s>` and padding, as far as the model has them."""
        processor = self._processor
        return frozenset({processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()})

    def decode(self, ids: Sequence[int]) -> str:
        # An embedding table may have more rows than the vocabulary, so a model can emit ids that have no text.
        kept = [int(i) for i in ids if i not in self.basic_token_ids and i < self.vocab_size]
        return self._processor.decode(kept)

    def token_to_id(self, piece: str) -> int:
        token_id = self._processor.piece_to_id(piece)
        if token_id == self._processor.unk_id():
            raise UserError(f"the tokenizer has no piece {piece!r}")
        return token_id

    def id_to_token(self, token_id: int) -> str:
        return self._processor.id_to_piece(token_id) if token_id < self.vocab_size else ""

    def is_special(self, token_id: int) -> bool:
        return token_id in (*self.prefix_tokens, self.eos_token_id)

    def __reduce__(self):
        return SentencePieceTokenizer, (self._model,)


class HuggingFaceTokenizer:
    """Tokenizer of a Hugging Face `tokenizer.json`, such as byte-level BPE. It can be pickled.

    Args:
      tokenizer_json: contents of `tokenizer.json`.
      bos_token: token at the start of a text; None if the model has none.
      eos_token: token at the end of a text.

    Raises:
      UserError: the package `tokenizers` is not installed, or the vocabulary lacks one of the two tokens.
    """

    def __init__(self, tokenizer_json: str, bos_token: str | None, eos_token: str):
        tokenizers = import_optional("tokenizers", "convert")
        self._arguments = tokenizer_json, bos_token, eos_token
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self.bos_token_id = None if bos_token is None else self.token_to_id(bos_token)
        self.eos_token_id = self.token_to_id(eos_token)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self._added_token_ids = frozenset(self._tokenizer.get_added_tokens_decoder())
        self.prefix_tokens = tuple(i for i in self._tokenizer.encode("").ids if i == self.bos_token_id)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_to_id(self, piece: str) -> int:
        token_id = self._tokenizer.token_to_id(piece)
        if token_id is None:
            raise UserError(f"the tokenizer has no piece {piece!r}")
        return token_id

    def id_to_token(self, token_id: int) -> str:
        return self._tokenizer.id_to_token(token_id) or ""

    def is_special(self, token_id: int) -> bool:
        return token_id in self._added_token_ids

    def __reduce__(self):
        return HuggingFaceTokenizer, self._arguments


def load_tokenizer(directory: PathLike) -> Tokenizer:
    """Loads the tokenizer of a model directory or corpus. Raises UserError if there is none.

    If both files exist, `tokenizer.model` is loaded, as in the original. The exception is a `tokenizer.json` with more
    special tokens than `<unk>`, `<s>` and `</s>`, such as `<|im_end|>`: `tokenizer.model` lacks them, or does not
    recognise them in a text.
    """
    directory = as_path(directory)
    sentencepiece_model, tokenizer_json = directory / "tokenizer.model", directory / "tokenizer.json"
    refuse_lfs_pointer(sentencepiece_model)
    refuse_lfs_pointer(tokenizer_json)
    if sentencepiece_model.is_file():
        tokenizer = _load_sentencepiece(sentencepiece_model)
        return (
            _load_huggingface(directory)
            if tokenizer_json.is_file() and not _added_token_ids(tokenizer_json) <= tokenizer.basic_token_ids
            else tokenizer
        )
    if tokenizer_json.is_file():
        return _load_huggingface(directory)
    raise UserError(f"no tokenizer.model and no tokenizer.json in {directory}")


def _added_token_ids(path: Path) -> set[int]:
    """Returns the ids of the added tokens in a `tokenizer.json`."""
    try:
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
        return {token["id"] for token in added}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a tokenizer: {error}") from None


def _load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except (OSError, RuntimeError, UserError) as error:
        raise UserError(f"{path} is not a sentencepiece model: {error}") from None


def _load_huggingface(directory: Path) -> Tokenizer:
    """Loads `tokenizer.json` with the special tokens that `tokenizer_config.json` names."""
    path = directory / "tokenizer_config.json"
    try:
        tokenizer_config = json.loads(path.read_text(encoding="utf-8"))
        bos, eos = (tokenizer_config.get(name) for name in ("bos_token", "eos_token"))
        bos, eos = (token["content"] if isinstance(token, dict) else token for token in (bos, eos))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name the bos_token and eos_token there") from None
    if not eos:
        raise UserError(f"{path} names no eos_token; add the one the model was trained with")
    try:
        return HuggingFaceTokenizer((directory / "tokenizer.json").read_text(encoding="utf-8"), bos or None, eos)
    except UserError:
        raise
    except Exception as error:  # the package raises plain Exception
        raise UserError(f"{directory / 'tokenizer.json'} is not a tokenizer: {error}") from None
