"""Training of small sentencepiece tokenizers. The mini-corpus and the tones use it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import sentencepiece

from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path


def train_bpe(texts: Iterable[str], path: Path, vocab_size: int, **options: Any) -> None:
    """Trains a BPE model without padding token and without text normalisation, and writes it to `path`.

    Training is deterministic: the same texts in the same order give the same file.

    Args:
      texts: training sentences.
      path: path of the model file, such as `tokenizer.model`.
      vocab_size: number of pieces.
      options: further options of `sentencepiece.SentencePieceTrainer.train`.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=-1,
        normalization_rule_name="identity",
        minloglevel=2,
        **options,
    )
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(model.getvalue())
