"""Measures training with `data.encoder_cache` against training without it, with real weights.

    python -m benchmarks.encoder_cache --whisper DIR --llm DIR --audio RECORDING ... [--steps 8] [--clips 64]

Converts Whisper and a language model in Hugging Face's format to a model with a window of 4 s and a new Q-Former, cuts
clips of 1 to 4 s from recordings, and trains the Q-Former and LoRA for some steps in float32, on the same batches:
without a cache, and with stores in float32, bfloat16 and float16. Prints the steps per second after two steps, the
bytes of a clip and the break-even that each filling reports, and the largest relative difference of a loss and of a
gradient norm from those without a cache. Then it times what a run with a cache still does with the audio of a clip:
reading it from data sets with FLAC and PCM, and hashing it. Needs `pip install -e '.[convert]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import soundfile

from data_pipelines import corpora
from data_pipelines.encoder_cache.store import window_key
from data_pipelines.from_config import audio_rules, source_windows
from launch import cli
from launch.presets import resolve_preset
from launch.train import train
from salmonn_jax.audio.files import load_audio
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.configs.preset import Preset

QFORMER = (
    "--qformer-hidden-size", 384, "--qformer-num-attention-heads", 6, "--qformer-intermediate-size", 1536,
    "--second-per-window", 0.24, "--second-stride", 0.24, "--lora-rank", 16, "--lora-alpha", 32,
)  # fmt: skip
WARMUP_STEPS = 2  # steps that are not timed
# Dtype of the store. The first variant is measured again at the end, to show how much the machine varies.
VARIANTS = {"no cache": None, "float32": "", "bfloat16": "bfloat16", "float16": "float16", "no cache 2": None}


def main() -> None:
    """Parses the command line, trains all variants and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", required=True, help="directory of Whisper")
    parser.add_argument("--llm", required=True, help="directory of the language model")
    parser.add_argument("--audio", nargs="+", required=True, help="recordings from which clips are cut")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=64, help="clips of the data set (default: %(default)s)")
    parser.add_argument("--audio-tokens", choices=("window", "clip"), default="window", help="see launch.convert")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_data(folder, arguments.audio, arguments.clips)
        run_command(
            "convert", "to-jax", "salmonn", "--whisper", arguments.whisper, "--llm", arguments.llm, "--output",
            folder / "model", "--audio-window-seconds", 4, "--audio-tokens", arguments.audio_tokens, *QFORMER,
        )  # fmt: skip
        cli.start_jax()
        rows = {variant: measure(folder, variant, arguments.steps) for variant in VARIANTS}
        print_rows(rows)
        print_reading(folder)


def write_data(folder: pathlib.Path, recordings: list[str], num_clips: int) -> None:
    """Writes clips of 1 to 4 s with a manifest, and data sets with the same clips in FLAC and in PCM."""
    rng, data = np.random.default_rng(0), folder / "data"
    data.mkdir()
    pcm = np.concatenate([load_audio(recording) for recording in recordings])
    lines = []
    for index in range(num_clips):
        length = int(rng.uniform(1, 4) * SAMPLE_RATE)
        start = int(rng.integers(len(pcm) - length))
        soundfile.write(data / f"{index}.wav", pcm[start : start + length], SAMPLE_RATE)
        answer = f"{index} seconds after {start}"
        lines.append(json.dumps({"id": str(index), "audio": f"{index}.wav", "task": "asr", "answer": answer}) + "\n")
    (data / "wav.jsonl").write_text("".join(lines))
    for encoding in ("flac", "pcm"):
        run_command("prepare", "manifest", data / "wav.jsonl", "--output", data / encoding, "--audio", encoding)


def run_command(verb: str, *arguments: object) -> None:
    """Runs `python -m launch.VERB` without its output."""
    command = [sys.executable, "-m", f"launch.{verb}", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def preset(folder: pathlib.Path, variant: str, steps: int) -> Preset:
    """Returns the run of a variant: 16 clips a step, one in a row."""
    overrides = [
        "data.corpus=files", f"data.data_dir={folder / 'data'}", "data.mixture.flac=1", "data.packing=pad",
        "data.rows=16", "data.clips=16", "data.seq_len=96", "data.streams=8", "data.lookahead=8",
        "activation_dtype=float32", "frozen_dtype=float32", "lr_schedule.peak_lr=1e-3", "lr_schedule.warmup_steps=4",
        f"num_train_steps={steps}",
    ]  # fmt: skip
    if VARIANTS[variant] is not None:
        overrides += [f"data.encoder_cache={folder / variant}", f"data.encoder_cache_dtype={VARIANTS[variant]}"]
    return resolve_preset("stage1", overrides, folder / "model")


@dataclasses.dataclass
class Measured:
    """Measurements of a run."""

    seconds: float  # median of a step
    losses: np.ndarray  # float64[steps, 2]: loss and gradient norm
    printed: str  # lines about the cache


def measure(folder: pathlib.Path, variant: str, steps: int) -> Measured:
    """Trains a variant."""
    output, printed = folder / f"run {variant}", io.StringIO()
    with contextlib.redirect_stderr(printed):
        train(preset(folder, variant, steps), output, folder / "model")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return Measured(
        statistics.median(16 / line["examples_per_second"] for line in lines[WARMUP_STEPS:]),
        np.array([(line["loss"], line["gradient_norm"]) for line in lines]),
        "\n".join(line for line in printed.getvalue().splitlines() if line.startswith("encoder cache ")
                  or line.startswith("encoder cache: filled")),
    )  # fmt: skip


def print_rows(rows: dict[str, Measured]) -> None:
    """Prints one line for each variant, and what the filling of its store reported."""
    expected = rows["no cache"]
    print(
        f"loss without a cache: {expected.losses[0, 0]:.3f} at the first step, {expected.losses[-1, 0]:.3f} at the last"
    )
    print(
        f"{'store':10} {'s a step':>9} {'steps/s':>8} {'times as fast':>14} {'loss differs':>13} {'gradient norm':>14}"
    )
    for variant, row in rows.items():
        loss, norm = np.abs(row.losses / expected.losses - 1).max(axis=0)
        print(
            f"{variant:10} {row.seconds:9.2f} {1 / row.seconds:8.3f} {expected.seconds / row.seconds:14.2f} "
            f"{loss:13.1e} {norm:14.1e}"
        )
    for variant, row in rows.items():
        print(*(f"{variant}: {line}" for line in row.printed.splitlines()), sep="\n", end="\n" if row.printed else "")


def print_reading(folder: pathlib.Path) -> None:
    """Times reading and hashing of the clips of the data sets, with one thread."""
    run = preset(folder, "float32", 1)
    for encoding in ("flac", "pcm"):
        data = dataclasses.replace(run.recipe.data, mixture={encoding: 1.0})
        rules = audio_rules(run.model, data)
        (source,) = source_windows(corpora.open_corpus("files", data.data_dir, rules), run.model, data, ["train"])
        windows = [window.samples for index in range(len(source)) for window in source[index]]
        start = time.perf_counter()
        for index in range(len(source)):
            source[index]
        read = (time.perf_counter() - start) / len(source)
        start = time.perf_counter()
        for window in windows:
            window_key(window)
        hashed = (time.perf_counter() - start) / len(windows)
        seconds = sum(map(len, windows)) / SAMPLE_RATE / len(windows)
        print(
            f"{encoding}: {read * 1e3:.2f} ms to read and hash a clip of {seconds:.1f} s, {hashed * 1e3:.2f} ms to hash"
        )


if __name__ == "__main__":
    cli.run(main)
