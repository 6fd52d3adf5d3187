"""Training of the tokenizer of the mini-corpus: sentencepiece with the special ids of LLaMA, on the corpus' texts."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from data_pipelines.examples import Example
from data_pipelines.minicorpus.clips import FILLER
from data_pipelines.sentencepiece_training import train_bpe
from salmonn_jax.prompts import AUDIO_PLACEHOLDER

VOCAB_SIZE = 512


def train_tokenizer(examples: Iterable[Example], path: pathlib.Path) -> None:
    """Trains a tokenizer on the prompts, answers and transcripts of examples, and writes it to `path`.

    The same examples in the same order give the same file.
    """
    texts = []
    for example in examples:
        # The model encodes the parts before and after the clip separately (see `salmonn_jax.prompts`).
        texts += f"USER: {example.prompt}\nASSISTANT:".split(AUDIO_PLACEHOLDER)
        texts += [example.answer, example.transcript]
    train_bpe(
        [text for text in texts if text],
        path,
        VOCAB_SIZE,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        character_coverage=1.0,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=[FILLER],
        num_threads=1,
    )
