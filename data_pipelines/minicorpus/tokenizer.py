"""The tokenizer of the mini-corpus: sentencepiece, with LLaMA's special ids, trained on the corpus' own texts."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable

import sentencepiece

from data_pipelines.examples import Example
from data_pipelines.minicorpus.clips import FILLER
from salmonn_jax.files import atomic_write
from salmonn_jax.prompts import AUDIO_PLACEHOLDER

VOCAB_SIZE = 512


def train_tokenizer(examples: Iterable[Example], path: pathlib.Path) -> None:
    """Trains on prompts as the model sees them, answers and transcripts, and writes `path`.

    Deterministic: the same examples in the same order give the same file.
    """
    texts = []
    for example in examples:
        # A prompt is cut where the clip goes, and each part encoded on its own (see `salmonn_jax.prompts`).
        texts += f"USER: {example.prompt}\nASSISTANT:".split(AUDIO_PLACEHOLDER)
        texts += [example.answer, example.transcript]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in texts if text]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=[FILLER],
        num_threads=1,
        minloglevel=2,
    )
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(model.getvalue())
