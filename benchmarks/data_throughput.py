"""Measure clips per second and core, from files to batches, of this data pipeline and of the original's.

    python -m benchmarks.data_throughput --audio CLIP ... [--workers 2]

Both pipelines read the same clips in one run. The original reads up to 30 s with soundfile, computes features with
transformers' `WhisperFeatureExtractor`, and makes batches of 8 with a torch `DataLoader`. salmonn_jax makes packed
batches of int16 samples, from FLAC files of a manifest and from ArrayRecord files of `launch.prepare manifest`; the
accelerator computes the features. All variants use the same number of worker processes, and salmonn_jax also threads.
The process is limited to as many cores as there are workers. Needs `pip install -e '.[compare]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Generator

import numpy as np
import soundfile

from benchmarks.packing import librispeech_seconds
from data_pipelines import corpora
from data_pipelines.from_config import audio_rules, make_training_data
from data_pipelines.stream.sample_dataset import available_cores
from salmonn_jax.audio.files import encode_flac, load_audio
from salmonn_jax.config import SAMPLE_RATE, DataConfig, ModelConfig
from salmonn_jax.tokenizer import load_tokenizer

BATCH = 8
ANSWER = "the duck says what the mountain hears"


class OriginalDataset:
    """Data set equivalent to the original's `SALMONNDataset`. It is at module level so that workers can unpickle it."""

    def __init__(self, paths: list[str]):
        from transformers import WhisperFeatureExtractor

        self._paths, self._extract = paths, WhisperFeatureExtractor()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int):
        """Returns features, samples and answer of a clip."""
        samples, rate = soundfile.read(self._paths[i])
        samples = samples[:, 0] if samples.ndim == 2 else samples
        samples = np.pad(samples, (0, max(0, rate - len(samples))))[: 30 * rate]
        features = self._extract(samples, sampling_rate=rate, return_tensors="pt")["input_features"].squeeze()
        return features, samples, ANSWER

    @staticmethod
    def collate(items):
        """Returns stacked features, padded samples and answers."""
        import torch

        features, samples, answers = zip(*items, strict=True)
        raw = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in samples], batch_first=True)
        return torch.stack(features), raw, answers


def original_batches(paths: list[str], workers: int) -> Generator[int, None, None]:
    """Yields the number of clips in each batch."""
    import torch

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        OriginalDataset(paths),
        BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=OriginalDataset.collate,
        drop_last=True,
        persistent_workers=True,  # an epoch of the original is long, so starting workers hardly costs time
    )
    while True:
        for features, _, _ in loader:
            yield len(features)


def salmonn_jax_batches(folder: pathlib.Path, source: str, workers: int) -> Generator[int, None, None]:
    """Yields the number of clips in each batch.

    Args:
      folder: directory of the corpus and the tokenizer.
      source: name of the source in the corpus.
      workers: number of worker processes; 0 reads with threads.
    """
    model = ModelConfig()
    data = DataConfig(
        corpus="files", data_dir=str(folder), mixture={source: 1.0}, rows=8, clips=32, seq_len=1024, streams=4,
        num_workers=workers,
    )  # fmt: skip
    corpus = corpora.open_corpus("files", data.data_dir, audio_rules(model, data))
    stream = make_training_data(corpus, load_tokenizer(folder), model, data, seed=0)
    with contextlib.closing(stream):
        for batch in stream:
            yield int((batch.pcm_length > 0).sum())


def make_corpus(folder: pathlib.Path, recordings: list[str], num_clips: int) -> list[str]:
    """Writes FLAC clips with a manifest, prepared corpora and a tokenizer, and returns the paths of the clips.

    Args:
      folder: directory to write.
      recordings: audio files from which the clips are cut. The clips have LibriSpeech's distribution of lengths.
      num_clips: number of clips.
    """
    from data_pipelines.sources import tones
    from launch import prepare

    rng = np.random.default_rng(0)
    pcm = np.concatenate([load_audio(recording) for recording in recordings])
    paths, lines = [], []
    for i in range(num_clips):
        start = int(rng.integers(len(pcm)))
        clip = np.take(pcm, np.arange(start, start + int(librispeech_seconds(rng) * SAMPLE_RATE)), mode="wrap")
        paths.append(str(folder / f"{i}.flac"))
        pathlib.Path(paths[-1]).write_bytes(encode_flac(clip))
        lines.append(json.dumps({"id": str(i), "audio": paths[-1], "answer": ANSWER}))
    (folder / "files.jsonl").write_text("\n".join(lines) + "\n")
    for coding in ("flac", "pcm"):
        output = str(folder / f"prepared_{coding}")
        prepare.main(["manifest", str(folder / "files.jsonl"), "--output", output, "--audio", coding, "--workers", "1"])
    tones.train_tokenizer(folder)
    return paths


def clips_per_second(batches: Generator[int, None, None], seconds: float) -> float:
    """Returns clips per second over at least `seconds` seconds, after three batches. Closes the generator."""
    with contextlib.closing(batches):
        for _ in range(3):
            next(batches)
        start, num_clips = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            num_clips += next(batches)
    return num_clips / elapsed


def main() -> None:
    """Parses the command line and measures all pipelines."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="worker processes of each pipeline (default: %(default)s)"
    )
    parser.add_argument("--clips", type=int, default=400, help="number of clips (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10, help="time of each pipeline in a round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: %(default)s)")
    parser.add_argument("--audio", nargs="+", required=True, metavar="CLIP", help="recordings to cut clips from")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.workers])
    with tempfile.TemporaryDirectory() as temp_dir:
        folder = pathlib.Path(temp_dir)
        paths = make_corpus(folder, options.audio, options.clips)
        pipelines: dict[str, Callable[[], Generator[int, None, None]]] = {
            "original": lambda: original_batches(paths, options.workers),
            "salmonn_jax, FLAC files": lambda: salmonn_jax_batches(folder, "files", options.workers),
            "salmonn_jax, FLAC files, threads": lambda: salmonn_jax_batches(folder, "files", 0),
            "salmonn_jax, prepared FLAC": lambda: salmonn_jax_batches(folder, "prepared_flac", options.workers),
            "salmonn_jax, prepared FLAC, threads": lambda: salmonn_jax_batches(folder, "prepared_flac", 0),
            "salmonn_jax, prepared PCM": lambda: salmonn_jax_batches(folder, "prepared_pcm", options.workers),
            "salmonn_jax, prepared PCM, threads": lambda: salmonn_jax_batches(folder, "prepared_pcm", 0),
        }
        rates: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(options.rounds):  # pipelines alternate, so that other load on the machine affects all of them
            for name, pipeline in pipelines.items():
                rates[name].append(clips_per_second(pipeline(), options.seconds))
    reference = statistics.median(rates["original"])
    cores = available_cores()
    print(f"{options.workers} workers on {cores} cores, load {os.getloadavg()[0]:.1f}")
    for name, rounds in rates.items():
        median = statistics.median(rounds)
        print(
            f"{name:35} {median / cores:8.1f} clips/s per core (median of {options.rounds} rounds, "
            f"{min(rounds) / cores:.1f} to {max(rounds) / cores:.1f}), {median / reference:.1f} x original"
        )


if __name__ == "__main__":
    main()
