"""Memory of the training stream on one host that reads all streams of stage 2: python -m benchmarks.stream_memory

Clips are noise of `--seconds` made on the fly, so that memory is that of the stream. Prints the resident memory above
that of the interpreter, the size of the checkpointed state, and the time from restoring it to the next batch.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.from_config import audio_rules
from data_pipelines.sources import tones
from data_pipelines.stream.mixture import source_shares
from data_pipelines.stream.training_data import BATCHES_AHEAD, TrainingData
from data_pipelines.transforms.encode import encode_config
from data_pipelines.transforms.prompt_templates import PromptTemplates
from data_pipelines.transforms.samples import Encoder, SampleReader
from launch.presets import resolve_preset
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class NoiseSource:
    """Source of 100,000 examples of noise. Each access makes a new array."""

    name: str
    seconds: float

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Example:
        pcm = np.random.default_rng(index).integers(-999, 999, int(self.seconds * SAMPLE_RATE), np.int16)
        return Example(id=str(index), audio=pcm, prompt="", answer="low", task="asr", source=self.name)


def resident_mb() -> float:
    """Returns the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a clip (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="batches to read (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to salmonn_13b_stage2")
    options = parser.parse_args()
    preset = resolve_preset("salmonn_13b_stage2", options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        tones.train_tokenizer(Path(folder))
        tokenizer = load_tokenizer(Path(folder))
    encoder = Encoder(
        tokenizer=tokenizer,
        prompt_templates=PromptTemplates.load(),
        config=encode_config(preset.model, dataclasses.replace(preset.recipe.data, seq_len=4096)),
        rules=audio_rules(preset.model, preset.recipe.data),
    )
    sources = {name: NoiseSource(name, options.seconds) for name in preset.recipe.data.mixture}
    before = resident_mb()
    data = TrainingData(
        SampleReader(sources, encoder, seed=0), preset.recipe.data, source_shares(preset.recipe.data, {})
    )
    with contextlib.closing(data):
        for _ in range(options.steps):
            batch = next(data)
        state = data.get_state()
        start = time.perf_counter()
        data.set_state(state)
        next(data)
        restored = time.perf_counter() - start
    sizes = [len(json.dumps(one)) for one in state.values()]
    batch_mb = sum(array.nbytes for array in batch) / 2**20
    print(f"{preset.recipe.data.streams} streams, clips of {options.seconds:g} s: {resident_mb() - before:.0f} MB")
    print(f"of which a batch has {batch_mb:.0f} MB, and up to {BATCHES_AHEAD + 1} batches are alive")
    print(f"state of a stream: {max(sizes)} bytes at most; restored to the next batch in {restored:.1f} s")


if __name__ == "__main__":
    main()
