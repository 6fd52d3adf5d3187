"""Transcribes the clips of an evaluation with Whisper: python benchmarks/whisper_transcripts.py EVAL --output OTHER

What a frozen Whisper encoder with its own decoder hears is a bound for a SALMONN with this encoder. EVAL is an
evaluation of `launch.quickstart --real`. The rows whose answer is a transcript (tasks transcribe and numbers, condition
audio) are answered by Whisper, greedily and with the language of the row, in transformers. Digits are written as words
of that language, as in the references. OTHER gets predictions for `python -m launch.score OTHER`.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import torch
import transformers

from data_pipelines import utterances
from data_pipelines.minicorpus.labels import DIGITS
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.evaluation.predictions import MERGED_FILE, Prediction, PredictionLog, read_predictions

TASKS = ("transcribe", "numbers")
NEW_TOKENS = 64


def main() -> None:
    """Parses the command line and writes the transcripts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=pathlib.Path, metavar="EVAL", help="evaluation of the quickstart")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="directory of the predictions")
    parser.add_argument("--whisper", type=pathlib.Path, default=".cache/parts/whisper-base", help="Whisper directory")
    parser.add_argument("--data-dir", type=pathlib.Path, default=".cache/minicorpus", help="directory of the corpus")
    parser.add_argument("--batch-size", type=int, default=8, help="clips at a time (default: %(default)s)")
    arguments = parser.parse_args()
    rows = [
        row
        for row in read_predictions(arguments.evaluation / MERGED_FILE)
        if row.task in TASKS and row.condition == "audio" and not row.error
    ]
    rows.sort(key=language_of)  # a batch has one language
    transcriber = Transcriber(arguments.whisper)
    audio = read_audio(rows, arguments.data_dir)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / MERGED_FILE).unlink(missing_ok=True)
    with PredictionLog(arguments.output / MERGED_FILE) as log:
        for batch in batches(rows, arguments.batch_size):
            texts = transcriber([audio[row.source, row.split, row.id] for row in batch], language_of(batch[0]))
            log.append([dataclasses.replace(row, prediction=text) for row, text in zip(batch, texts, strict=True)])
            print(f"{batch[-1].id}: {texts[-1]!r} for {batch[-1].references[0]!r}")


def language_of(row: Prediction) -> str:
    """Returns the language of a row; that of a number string is the one whose digits it has."""
    words = set(row.references[0].split())
    return row.language or next((name for name, digits in DIGITS.items() if words <= set(digits)), "")


def read_audio(rows: list[Prediction], data_dir: pathlib.Path) -> dict[tuple[str, str, str], np.ndarray]:
    """Returns the clips of rows, int16[samples] at 16 kHz, by source, split and id."""
    found = {}
    for source, split in sorted({(row.source, row.split) for row in rows}):
        examples = utterances.open_source(data_dir, source, split)
        for index in range(len(examples)):
            example = examples[index]
            found[source, split, example.id] = example.audio
    return found


def batches(rows: list[Prediction], size: int) -> Iterator[list[Prediction]]:
    """Yields rows of one language, at most `size` at a time."""
    batch: list[Prediction] = []
    for row in rows:
        if batch and (len(batch) == size or language_of(row) != language_of(batch[0])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class Transcriber:
    """Whisper in transformers, with the weights and the tokenizer of a directory."""

    def __init__(self, directory: pathlib.Path):
        self._model = transformers.WhisperForConditionalGeneration.from_pretrained(directory).eval()
        self._features = transformers.WhisperFeatureExtractor.from_pretrained(directory)
        self._tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))

    def __call__(self, clips: list[np.ndarray], language: str) -> list[str]:
        """Returns the transcripts of clips. An unknown language, "", is detected from the first clip."""
        samples = [clip.astype(np.float32) / 32768 for clip in clips]
        features = self._features(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        special = self._tokenizer.convert_tokens_to_ids
        start, end = special("<|startoftranscript|>"), special("<|endoftext|>")
        with torch.inference_mode():
            encoded = self._model.model.encoder(features)
            if not language:
                known = {special(f"<|{name}|>"): name for name in DIGITS}
                logits = self._model(
                    encoder_outputs=encoded, decoder_input_ids=torch.full((len(clips), 1), start)
                ).logits
                language = known[max(known, key=lambda token: float(logits[0, -1, token]))]
            prompt = [start, special(f"<|{language}|>"), special("<|transcribe|>"), special("<|notimestamps|>")]
            ids = torch.tensor([prompt] * len(clips))
            done = torch.zeros(len(clips), dtype=torch.bool)
            while not done.all() and ids.shape[1] < len(prompt) + NEW_TOKENS:
                logits = self._model(encoder_outputs=encoded, decoder_input_ids=ids).logits[:, -1, : end + 1]
                token = torch.where(done, end, logits.argmax(-1))
                done |= token == end
                ids = torch.cat([ids, token[:, None]], dim=1)
        texts = self._tokenizer.batch_decode(ids[:, len(prompt) :], skip_special_tokens=True)
        return [digits_as_words(text.strip(), language) for text in texts]


def digits_as_words(text: str, language: str) -> str:
    """Writes each digit of a text as a word, in a language of the digit strings."""
    if language not in DIGITS:
        return text
    return re.sub(r"\d", lambda digit: f" {DIGITS[language][int(digit[0])]} ", text)


if __name__ == "__main__":
    main()
