"""Clips a second and core, from files to batches: this pipeline and the original's way, on the same files in one run.

    python -m benchmarks.data_throughput --audio CLIP ... [--workers 2]

The original's way: soundfile, 30 s at most, transformers' `WhisperFeatureExtractor` and the raw samples, in batches of
8 by a torch `DataLoader`. Ours: packed batches of int16 samples, whose features the accelerator computes; from FLAC
files by a manifest, and from ArrayRecord files that `launch.prepare manifest` made of them. All with the same number of
worker processes, ours with threads too, and all on as many cores as there are workers, if the machine has them. Needs
`pip install -e '.[compare]'`.
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
from data_pipelines.stream.from_config import audio_rules, make_training_data
from data_pipelines.stream.sample_dataset import available_cores
from salmonn_jax.audio_files import encode_flac, load_audio
from salmonn_jax.config import SAMPLE_RATE, DataConfig, ModelConfig
from salmonn_jax.tokenizer import load_tokenizer

BATCH = 8
ANSWER = "the duck says what the mountain hears"


class OriginalDataset:
    """A data set as the original's `SALMONNDataset`. At module level, so that worker processes can be given it."""

    def __init__(self, paths: list[str]):
        from transformers import WhisperFeatureExtractor

        self._paths, self._extract = paths, WhisperFeatureExtractor()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int):
        samples, rate = soundfile.read(self._paths[i])
        samples = samples[:, 0] if samples.ndim == 2 else samples
        samples = np.pad(samples, (0, max(0, rate - len(samples))))[: 30 * rate]
        features = self._extract(samples, sampling_rate=rate, return_tensors="pt")["input_features"].squeeze()
        return features, samples, ANSWER

    @staticmethod
    def collate(items):
        import torch

        features, samples, answers = zip(*items, strict=True)
        raw = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in samples], batch_first=True)
        return torch.stack(features), raw, answers


def original_batches(paths: list[str], workers: int) -> Generator[int, None, None]:
    """Yields how many clips each batch has."""
    import torch

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        OriginalDataset(paths),
        BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=OriginalDataset.collate,
        drop_last=True,
        persistent_workers=True,  # its epochs are long: it would not often begin one
    )
    while True:
        for features, _, _ in loader:
            yield len(features)


def salmonn_jax_batches(folder: pathlib.Path, source: str, workers: int) -> Generator[int, None, None]:
    """Yields how many clips each batch has."""
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
    """Writes clips as long as LibriSpeech's, cut from recordings; the manifest; the data set; a tokenizer."""
    from data_pipelines.sources import tones
    from launch import prepare

    random = np.random.default_rng(0)
    recorded = np.concatenate([load_audio(sound) for sound in recordings])
    paths, lines = [], []
    for i in range(num_clips):
        start = int(random.integers(len(recorded)))
        clip = np.take(recorded, np.arange(start, start + int(librispeech_seconds(random) * SAMPLE_RATE)), mode="wrap")
        paths.append(str(folder / f"{i}.flac"))
        pathlib.Path(paths[-1]).write_bytes(encode_flac(clip))
        lines.append(json.dumps({"id": str(i), "audio": paths[-1], "answer": ANSWER}))
    (folder / "files.jsonl").write_text("\n".join(lines) + "\n")
    for coding in ("flac", "pcm"):
        made = str(folder / f"prepared_{coding}")
        prepare.main(["manifest", str(folder / "files.jsonl"), "--output", made, "--audio", coding, "--workers", "1"])
    tones.train_tokenizer(folder)
    return paths


def clips_per_second(batches: Generator[int, None, None], seconds: float) -> float:
    """Clips a second, when it runs: after the first batches, over at least so many seconds. Ends it."""
    with contextlib.closing(batches):
        for _ in range(3):
            next(batches)
        begin, read = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < seconds:
            read += next(batches)
    return read / passed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=400, help="files that are made (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of each in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--audio", nargs="+", required=True, metavar="CLIP", help="recordings to cut clips from")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.workers])
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        paths = make_corpus(folder, options.audio, options.clips)
        ways: dict[str, Callable[[], Generator[int, None, None]]] = {
            "original": lambda: original_batches(paths, options.workers),
            "ours, FLAC files": lambda: salmonn_jax_batches(folder, "files", options.workers),
            "ours, FLAC files, threads": lambda: salmonn_jax_batches(folder, "files", 0),
            "ours, prepared FLAC": lambda: salmonn_jax_batches(folder, "prepared_flac", options.workers),
            "ours, prepared FLAC, threads": lambda: salmonn_jax_batches(folder, "prepared_flac", 0),
            "ours, prepared PCM": lambda: salmonn_jax_batches(folder, "prepared_pcm", options.workers),
            "ours, prepared PCM, threads": lambda: salmonn_jax_batches(folder, "prepared_pcm", 0),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):  # in turns, so that what else the machine does meets all
            for name, way in ways.items():
                rates[name].append(clips_per_second(way(), options.seconds))
    reference = statistics.median(rates["original"])
    cores = available_cores()
    print(f"{options.workers} workers on {cores} cores, load {os.getloadavg()[0]:.1f}")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(
            f"{name:28} {middle / cores:8.1f} clips/s a core (of {options.rounds} rounds: "
            f"{min(found) / cores:.1f} to {max(found) / cores:.1f}), {middle / reference:.1f} times"
        )


if __name__ == "__main__":
    main()
