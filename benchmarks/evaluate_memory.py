"""Memory of evaluating many short clips: python -m benchmarks.evaluate_memory

For each number of clips, another process evaluates a manifest with so many recordings: it checks and hashes them,
decodes them ahead of a model, writes and merges the predictions, scores them and writes the report. Prints the peak of
its resident memory. The model only counts samples, or is that of --model, which answers greedily with four tokens.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile

import launch.evaluate
from data_pipelines.evaluation.open import open_manifests
from data_pipelines.evaluation.rows import EvaluationRows, NamedSource
from data_pipelines.sources.audio import AudioRules
from data_pipelines.transforms.prompt_templates import PromptTemplates
from launch.evaluate import Options
from salmonn_jax.config import SAMPLE_RATE, GenerationConfig
from salmonn_jax.decoding.answers import Generation, Window
from salmonn_jax.evaluation.predict import PredictOptions
from salmonn_jax.evaluation.run import Evaluation, run_evaluation
from salmonn_jax.evaluation.tasks import check_task

WORDS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905


class CountingModel:
    """Model whose answer is a text of some words, chosen by the sum of the samples."""

    num_compilations = 0

    def make_request(self, audio: tuple[np.ndarray, int], prompt: str, **_: Any) -> np.ndarray:
        return audio[0]

    def answer(self, requests: Sequence[np.ndarray], generation_config: GenerationConfig, **_: Any) -> list[Generation]:
        answers = []
        for samples in requests:
            text = " ".join(WORDS[int(digit)] for digit in str(abs(int(samples.sum()))))
            window = Window(0.0, len(samples) / SAMPLE_RATE, None)
            answers.append(
                Generation(text=text, token_ids=[2], num_tokens=1, score=-1.0, finish_reason="stop", windows=(window,))
            )
        return answers


def write_manifest(folder: pathlib.Path, num_clips: int, seconds: float) -> pathlib.Path:
    """Writes recordings of noise and their manifest, and returns its path."""
    lines = []
    for index in range(num_clips):
        samples = np.random.default_rng(index).integers(-9000, 9000, round(seconds * SAMPLE_RATE)).astype(np.int16)
        soundfile.write(folder / f"{index}.wav", samples, SAMPLE_RATE)
        lines.append({"id": f"clip-{index}", "audio": f"{index}.wav", "answer": "one two three", "prompt": "What?"})
    path = folder / "noise.test.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluate(manifest: pathlib.Path, output: pathlib.Path, model: pathlib.Path | None) -> None:
    """Evaluates a manifest and prints the peak of the resident memory in MB and the seconds."""
    start = time.perf_counter()
    sources = open_manifests([manifest], None, AudioRules(too_long="chunk"))
    if model is None:
        evaluate_counting(sources, output)
    else:
        config = GenerationConfig(num_beams=1, max_new_tokens=4)
        launch.evaluate.evaluate(model, output, sources, config, Options(batch_size=32, preflight=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": peak, "seconds": time.perf_counter() - start}))


def evaluate_counting(sources: Sequence[NamedSource], output: pathlib.Path) -> None:
    """Evaluates data sets with `CountingModel`."""
    rows = EvaluationRows(sources, PromptTemplates.load_for_evaluation(), check_task)
    rows.missing_files((0, 1))
    options = PredictOptions(generation_config=GenerationConfig(), too_long="error", batch_size=8, max_failures=10)
    evaluation = Evaluation(
        rows=rows,
        conditions=("audio",),
        settings={},
        sources=rows.describe_sources(),
        session={},
        options=options,
        bucket=lambda prompt, has_audio: 32,
    )
    run_evaluation(CountingModel(), evaluation, output)
    launch.evaluate.write_scores(output, rows, "memory", ())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[200, 20_000], help="numbers of clips")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip (default: %(default)s)")
    parser.add_argument(
        "--model", type=pathlib.Path, help="model or run directory, in place of one that counts samples"
    )
    parser.add_argument("--child", nargs=2, type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        evaluate(*arguments.child, arguments.model)
        return
    for num_clips in arguments.clips:
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_manifest(pathlib.Path(folder), num_clips, arguments.seconds)
            command = [sys.executable, "-m", "benchmarks.evaluate_memory", "--child", manifest, f"{folder}/evaluation"]
            command += [] if arguments.model is None else ["--model", arguments.model]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(process.stdout.splitlines()[-1])
            print(f"{num_clips:6} clips: peak {result['peak_mb']:.0f} MB, {result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
