"""Measure how full the rows and clip slots of stage 2 are, packed and padded: python -m benchmarks.packing

Example lengths are simulated because the corpora are licensed. The shares of the sources are those of the paper. Clip
lengths follow the published figures of the corpora. Token rates are those of LLaMA's tokenizer: 1.35 tokens per English
word at 2.7 words per second of read speech, 1.7 tokens per Chinese character, and 2.1 tokens per phone at 11 phones per
second.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count, islice
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.stream.mixture import normalise
from data_pipelines.stream.packing import PACKINGS, ExampleSize, StepCapacity, step_capacities
from data_pipelines.stream.sample_dataset import PendingSample, SampleIterDataset, mixing_schedule
from data_pipelines.transforms.samples import SampleRef
from launch.presets import resolve_preset
from salmonn_jax.config import SAMPLE_RATE, DataConfig
from salmonn_jax.configs import get_preset
from salmonn_jax.configs.preset import Preset

ORIGINAL_BATCH_SIZE = 8  # examples on one GPU, padded to the longest
# Batch layouts to compare, as changes to `salmonn_13b_stage2`, which packs.
VARIANTS = {
    "packed": {},
    "packed, clips alone": {"model.audio.tokens": "clip", "data.seq_len": "672"},
    "padded, in buckets": {
        "data.packing": "pad",
        "data.rows": "384",
        "data.seq_len": "448",
        "data.buckets": '{"144": 0.53, "192": 0.32, "448": 0.15}',
    },
    "padded": {"data.packing": "pad", "data.rows": "384", "data.seq_len": "448"},
}


def librispeech_seconds(rng: np.random.Generator) -> float:
    """Returns a random length of a LibriSpeech utterance: most are near 15 s, none is longer than 17 s."""
    return float(np.clip(16 - abs(rng.normal(0, 5)), 1.5, 16.5))


def gigaspeech_seconds(rng: np.random.Generator) -> float:
    """Returns a random length of a GigaSpeech segment: 4 s on average."""
    return float(np.clip(rng.gamma(1.6, 2.5), 0.5, 20))


def normal_seconds(mean: float, spread: float) -> Callable[[np.random.Generator], float]:
    """Returns a sampler of normally distributed clip lengths in seconds, between 0.5 and 30."""
    return lambda rng: float(np.clip(rng.normal(mean, spread), 0.5, 30))


def tokens_of_words(mean: float, spread: float) -> Callable[[np.random.Generator, float], float]:
    """Returns a sampler of answer lengths in tokens, from the mean and standard deviation of the number of words."""
    return lambda rng, _: 1.35 * max(1.0, rng.gamma((mean / spread) ** 2, spread**2 / mean))


def tokens_per_second(tokens: float) -> Callable[[np.random.Generator, float], float]:
    """Returns a function that gives an answer `tokens` tokens per second of its clip."""
    return lambda _, seconds: tokens * seconds


def constant_tokens(tokens: float) -> Callable[[np.random.Generator, float], float]:
    """Returns a function that gives every answer `tokens` tokens."""
    return lambda _, seconds: tokens


@dataclasses.dataclass(frozen=True)
class LengthModel:
    """Lengths of the examples of one source.

    Attributes:
      seconds: sampler of clip lengths in seconds.
      answer_tokens: sampler of answer lengths in tokens; takes the clip length in seconds.
      prompt_tokens: mean number of tokens of its prompt templates; 0 if its prompts are questions.
      question_tokens: mean number of tokens of its questions; 0 if it has none.
    """

    seconds: Callable[[np.random.Generator], float]
    answer_tokens: Callable[[np.random.Generator, float], float]
    prompt_tokens: int
    question_tokens: int = 0


# Mean seconds are the hours divided by the number of samples in the paper's table.
SOURCES = {
    "librispeech": LengthModel(librispeech_seconds, tokens_per_second(3.6), 14),
    "gigaspeech": LengthModel(gigaspeech_seconds, tokens_per_second(3.9), 14),
    "covost2": LengthModel(normal_seconds(5.3, 1.8), lambda rng, _: 1.7 * max(4.0, rng.normal(21, 8)), 16),
    "audiocaps": LengthModel(normal_seconds(9.8, 0.5), tokens_of_words(8.8, 4), 12),
    "clotho": LengthModel(normal_seconds(21.6, 4.5), tokens_of_words(11.3, 3), 12),
    "librispeech_phones": LengthModel(librispeech_seconds, tokens_per_second(2.1 * 11), 16),
    "iemocap": LengthModel(normal_seconds(4.5, 2.5), constant_tokens(2), 12),
    "musiccaps": LengthModel(normal_seconds(10, 0), tokens_of_words(48, 18), 16),
    "librimix": LengthModel(
        normal_seconds(14.6, 3), lambda rng, _: 3.6 * (librispeech_seconds(rng) + librispeech_seconds(rng)), 17
    ),
    "voxceleb1": LengthModel(normal_seconds(8.3, 2), constant_tokens(2), 20),
    "librispeech_gender": LengthModel(librispeech_seconds, constant_tokens(3), 14),
    "librispeech_qa": LengthModel(librispeech_seconds, tokens_of_words(13, 9), 0, 16),
    "wavcaps_qa": LengthModel(normal_seconds(10.1, 5), tokens_of_words(10, 7), 0, 14),
    "audiocaps_qa": LengthModel(normal_seconds(9.8, 0.5), tokens_of_words(10, 7), 0, 14),
    "millionsong_qa": LengthModel(normal_seconds(30, 0), tokens_of_words(14, 10), 0, 15),
    "musicnet_qa": LengthModel(normal_seconds(27, 0), tokens_of_words(14, 10), 0, 15),
}
TEMPLATE_TOKENS = 19  # tokens of the Vicuna template, `<Speech>` and `</Speech>`


@dataclasses.dataclass(frozen=True)
class PackingStats:
    """Statistics of a batch layout, and of the original's padding of the same examples.

    Attributes:
      token_utilization: fraction of token positions that are not padding.
      clip_utilization: fraction of clip slots with a clip.
      tokens_per_example: token positions per example, including padding.
      original_tokens_per_example: token positions per example in the original, including padding.
      original_token_utilization: fraction of token positions that are not padding in the original.
      max_wait_steps: largest number of steps that an example waited in the packer.
    """

    token_utilization: float
    clip_utilization: float
    tokens_per_example: float
    original_tokens_per_example: float
    original_token_utilization: float
    max_wait_steps: int


class ExampleTokens(NamedTuple):
    """Number of tokens of an example: text before the answer, audio tokens without padding, and answer."""

    prompt: int
    audio: int
    answer: int


class NoOpReader:
    """Replacement of the reader pool that reads nothing. Only the order of the sources matters here."""

    chunk_size = 1

    def read(self, refs: Sequence[SampleRef]) -> list[PendingSample]:
        """Returns a finished, empty result for each sample."""
        done: Future = Future()
        done.set_result([None] * len(refs))
        return [PendingSample(ref, done, index) for index, ref in enumerate(refs)]


def drawn_sources(preset: Preset, stream: int) -> Iterator[str]:
    """Yields the source of each sample in the order of a stream."""
    shares = normalise(preset.recipe.data.mixture)
    samples = SampleIterDataset(shares, stream, preset.recipe.data.streams, NoOpReader(), read_ahead=0)
    return (ref.source for ref, _ in samples)


def simulate_examples(preset: Preset, sources: Iterable[str], rng: np.random.Generator) -> Iterator[ExampleTokens]:
    """Yields one simulated example for each source in `sources`.

    Args:
      preset: recipe and model.
      sources: names of the sources, in order.
      rng: generator of the lengths.
    """
    for source in sources:
        lengths = SOURCES[source]
        question_tokens = lengths.question_tokens and lengths.question_tokens + int(rng.integers(-6, 10))
        prompt = (
            TEMPLATE_TOKENS
            + lengths.prompt_tokens
            + question_tokens
            + int(rng.integers(-4, 5)) * (lengths.prompt_tokens > 0)
        )
        seconds = lengths.seconds(rng)
        answer = min(preset.recipe.data.max_answer_tokens, 1 + round(lengths.answer_tokens(rng, seconds)))
        yield ExampleTokens(prompt, preset.model.num_valid_audio_tokens(round(seconds * SAMPLE_RATE)), answer)


class Step(NamedTuple):
    """Packed step: its capacity, and its examples with the number of steps that each waited."""

    capacity: StepCapacity
    waits_and_examples: list[tuple[int, ExampleTokens]]


def simulate_packing(data: DataConfig, examples: Iterator[ExampleTokens]) -> Iterator[Step]:
    """Yields the packed steps of one stream, without end."""
    seq_lens = mixing_schedule(normalise(data.buckets or {str(data.seq_len): 1.0}))
    window: list[tuple[int, ExampleTokens]] = []  # step in which the example arrived, and its lengths
    for step in count():
        window += [(step, next(examples)) for _ in range(data.lookahead - len(window))]
        capacity = step_capacities(data)[seq_lens[step]]
        rows = PACKINGS[data.packing]([ExampleSize(sum(lengths), 1) for _, lengths in window], capacity)
        chosen = {i for row in rows for i in row}
        yield Step(capacity, [(step - window[i][0], window[i][1]) for i in chosen])
        window = [entry for i, entry in enumerate(window) if i not in chosen]


def packed_by_grain(preset: Preset, num_examples: int, num_bins: int) -> tuple[float, float]:
    """Returns the fractions of tokens and clip slots that grain's best-fit packer fills with simulated examples.

    Args:
      preset: recipe and model.
      num_examples: number of examples.
      num_bins: number of rows that the packer fills at the same time.
    """
    examples = simulate_examples(preset, drawn_sources(preset, 0), np.random.default_rng(0))
    items = [
        {"tokens": np.zeros(sum(lengths), np.int8), "clips": np.zeros(1, np.int8)}
        for lengths in islice(examples, num_examples)
    ]
    capacity = step_capacities(preset.recipe.data)[str(preset.recipe.data.seq_len)]
    rows = grain.experimental.BestFitPackIterDataset(
        grain.MapDataset.source(items).to_iter_dataset(),
        length_struct={"tokens": capacity.seq_len, "clips": capacity.clips},
        num_packing_bins=num_bins,
        shuffle_bins=False,
    )
    names = ("tokens", "clips")
    utilization = np.array([[(row[f"{name}_segment_ids"] > 0).mean() for name in names] for row in rows])
    return tuple(utilization.mean(axis=0))


def share_errors(steps: int) -> tuple[float, float, int]:
    """Measures the largest difference between a source's number of samples and its share, after any of `steps` steps.

    Streams pack different numbers of samples into a step, so they read the mixture at different speeds.

    Returns:
      The largest difference within one stream, the largest difference over all streams, and the number of samples.
    """
    preset = get_preset("salmonn_13b_stage2")
    shares, streams = normalise(preset.recipe.data.mixture), preset.recipe.data.streams
    names = sorted(shares)
    ratios = np.array([shares[name] for name in names])
    counts = np.zeros((streams, len(names)))

    def count_sources(stream: int) -> Iterator[str]:
        for source in drawn_sources(preset, stream):
            counts[stream, names.index(source)] += 1
            yield source

    step_iterators = [
        simulate_packing(
            preset.recipe.data, simulate_examples(preset, count_sources(stream), np.random.default_rng(stream))
        )
        for stream in range(streams)
    ]
    stream_error = global_error = 0.0
    for _ in zip(range(steps), *step_iterators, strict=False):
        stream_error = max(stream_error, np.abs(counts - counts.sum(1, keepdims=True) * ratios).max())
        global_error = max(global_error, np.abs(counts.sum(0) - counts.sum() * ratios).max())
    return stream_error, global_error, int(counts.sum())


def measure_packing(steps: int, variant: str, seed: int = 0) -> PackingStats:
    """Packs steps of one stream of `salmonn_13b_stage2` and returns the statistics.

    Args:
      steps: number of steps.
      variant: key of `VARIANTS`.
      seed: seed of the lengths and of the original's batches.
    """
    overrides = [f"{path}={text}" for path, text in VARIANTS[variant].items()]
    preset = resolve_preset("salmonn_13b_stage2", overrides)
    examples = simulate_examples(preset, drawn_sources(preset, 0), np.random.default_rng(seed))
    num_tokens, num_slots, max_wait, examples_packed = 0, 0, 0, []
    for step in islice(simulate_packing(preset.recipe.data, examples), steps):
        num_tokens += step.capacity.rows * step.capacity.seq_len
        num_slots += step.capacity.clips
        max_wait = max([max_wait, *(wait for wait, _ in step.waits_and_examples)])
        examples_packed += [lengths for _, lengths in step.waits_and_examples]
    lengths = np.array(examples_packed)
    num_examples = len(lengths) // ORIGINAL_BATCH_SIZE * ORIGINAL_BATCH_SIZE  # in full batches of the original
    batches = np.random.default_rng(seed).permutation(lengths[:num_examples]).reshape(-1, ORIGINAL_BATCH_SIZE, 3)
    # The original pads prompts and answers to the longest of a batch. Its number of audio tokens is constant.
    padded = batches[:, :, [0, 2]].max(axis=1).sum(axis=1).mean() + preset.model.num_audio_tokens
    unpadded = lengths[:num_examples, [0, 2]].sum() / num_examples + preset.model.num_audio_tokens
    return PackingStats(
        token_utilization=lengths.sum() / num_tokens,
        clip_utilization=len(lengths) / num_slots,
        tokens_per_example=num_tokens / len(lengths),
        original_tokens_per_example=padded,
        original_token_utilization=unpadded / padded,
        max_wait_steps=max_wait,
    )


def main() -> None:
    """Parses the command line and prints the statistics of all layouts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000, help="number of steps (default: %(default)s)")
    steps = parser.parse_args().steps
    for variant in VARIANTS:
        stats = measure_packing(steps, variant)
        print(
            f"{variant + ':':20} {stats.token_utilization:.3f} of the tokens and {stats.clip_utilization:.3f} of the "
            f"clip slots are used; {stats.tokens_per_example:.0f} tokens per example, "
            f"longest wait {stats.max_wait_steps} steps"
        )
    print(
        f"{f'original, by {ORIGINAL_BATCH_SIZE}:':20} {stats.original_token_utilization:.3f} of the tokens are used; "
        f"{stats.original_tokens_per_example:.0f} tokens per example"
    )
    preset = get_preset("salmonn_13b_stage2")
    for num_bins in (8, 64):
        tokens, clips = packed_by_grain(preset, 6 * steps, num_bins)
        print(f"{f'grain, {num_bins} bins:':20} {tokens:.3f} of the tokens and {clips:.3f} of the clip slots are used")
    stream_error, global_error, num_samples = share_errors(steps // preset.recipe.data.streams)
    print(
        f"packed, {preset.recipe.data.streams} streams: a source differs from its share by at most {stream_error:.1f} "
        "samples "
        f"in a stream and by {global_error:.1f} of {num_samples:,} in all streams"
    )


if __name__ == "__main__":
    main()
