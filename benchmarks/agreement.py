"""Measures which answers change with dtype and device mesh: python -m benchmarks.agreement MODEL DATA

DATA is the folder of a prepared data set, such as .cache/minicorpus/utterances/1.0.0/captions. Some of its clips are
answered in float32 on one device, and then in other ways on eight simulated CPU devices: on a data-parallel mesh, with
tensor parallelism, and in bfloat16. All decode greedily and with four beams, with one batch size. Prints, for each way,
the share of texts that are those of float32 on one device, and the gap of the scores (log-probabilities per token): the
mean and the largest absolute difference.

The weights may be untrained. Answers then have more near ties than those of a trained model.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

import salmonn_jax
from data_pipelines.sources.prepared import open_split
from salmonn_jax.config import SAMPLE_RATE, GenerationConfig
from salmonn_jax.decoding.answers import Generation
from salmonn_jax.evaluation.scoring.table import format_cells
from salmonn_jax.sharding import make_mesh

NUM_DEVICES = 8
REFERENCE = ("float32", {})
WAYS: dict[str, tuple[str, dict[str, int]]] = {  # dtype and sizes of the mesh
    "data8": ("float32", {"data": 8}),
    "tensor2": ("float32", {"tensor": 2}),
    "tensor4": ("float32", {"tensor": 4}),
    "tensor8": ("float32", {"tensor": 8}),
    "bfloat16": ("bfloat16", {}),
    "bfloat16-tensor4": ("bfloat16", {"tensor": 4}),
}


def main() -> None:
    """Parses the command line, decodes in all ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model or run directory")
    parser.add_argument(
        "data", help="folder of a prepared data set, such as .cache/minicorpus/utterances/1.0.0/captions"
    )
    parser.add_argument("--split", default="test", help="split of the data set (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=56, help="number of clips (default: %(default)s)")
    parser.add_argument("--prompt", default="Please describe the audio.", help="question (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=24, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows at a time (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to decode (default: all)")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    examples = open_split(arguments.data, "data", arguments.split)
    clips = [examples[i].audio for i in np.linspace(0, len(examples) - 1, arguments.clips, dtype=int)]
    configs = [GenerationConfig(num_beams=beams, max_new_tokens=arguments.new_tokens) for beams in (1, 4)]
    cells = [("dtype", "mesh", "beams", "clips", "identical texts", "score gap", "largest", "seconds")]
    references: list[list[Generation]] = []
    for dtype, sizes in (REFERENCE, *(WAYS[way] for way in arguments.ways)):
        devices = jax.devices()[: sizes.get("data", 1) * sizes.get("tensor", 1)]
        model = salmonn_jax.load(arguments.model, mesh=make_mesh(sizes, devices), dtype=dtype)
        requests = [
            model.make_request(
                (clip, SAMPLE_RATE), arguments.prompt, max_new_tokens=arguments.new_tokens, too_long="truncate"
            )
            for clip in clips
        ]
        for index, config in enumerate(configs):
            start = time.perf_counter()
            answers = model.answer(requests, config, batch_size=arguments.batch_size)
            seconds = time.perf_counter() - start
            if len(references) < len(configs):
                references.append(answers)
            mesh = " ".join(f"{axis}={size}" for axis, size in sizes.items()) or "one device"
            compared = compare(answers, references[index])
            cells.append((dtype, mesh, str(config.num_beams), str(len(answers)), *compared, f"{seconds:.0f}"))
            print(*cells[-1], flush=True)
    print(format_cells(cells))


def compare(answers: Sequence[Generation], references: Sequence[Generation]) -> tuple[str, str, str]:
    """Returns the share of identical texts, and the mean and the largest absolute difference of scores."""
    identical = np.mean([a.text == r.text for a, r in zip(answers, references, strict=True)])
    gaps = np.abs([a.score - r.score for a, r in zip(answers, references, strict=True)])
    return f"{100 * identical:.1f} %", f"{gaps.mean():.1g}", f"{gaps.max():.1g}"


if __name__ == "__main__":
    main()
