"""How much of the rows and clips of stage 2 is filled, our ways and as the original pads: python -m benchmarks.packing

Lengths are simulated, for the corpora are licensed: of each source of the paper's table its share, how long its
answers are, and its prompt. Clips are as long as the corpora say; tokens a second or a word are LLaMA's on English
(1.35 a word, 2.7 words a second read aloud), on Chinese (1.7 a character), and on phones (2.1 each, 11 a second).
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
from data_pipelines.stream.sample_dataset import PendingSample, SampleIterDataset, mixed_names
from data_pipelines.transforms.samples import SampleRef
from salmonn_jax import config as configuration
from salmonn_jax.config import SAMPLE_RATE, DataConfig, RunConfig
from salmonn_jax.configs import get_config

Random = np.random.Generator
ORIGINAL_BATCH_SIZE = 8  # examples on one GPU, padded to the longest
# Ways to lay the same examples out: changes to `salmonn_13b_stage2`, which packs.
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


def librispeech_seconds(random: Random) -> float:
    """Seconds of a LibriSpeech utterance: most are near 15, none longer than 17."""
    return float(np.clip(16 - abs(random.normal(0, 5)), 1.5, 16.5))


def gigaspeech_seconds(random: Random) -> float:
    """Seconds of a GigaSpeech segment: 4 on average."""
    return float(np.clip(random.gamma(1.6, 2.5), 0.5, 20))


def normal_seconds(mean: float, spread: float) -> Callable[[Random], float]:
    """Seconds of clips of a corpus whose mean is known, 30 at most."""
    return lambda random: float(np.clip(random.normal(mean, spread), 0.5, 30))


def tokens_of_words(mean: float, spread: float) -> Callable[[Random, float], float]:
    """Tokens of an answer of so many words."""
    return lambda random, _: 1.35 * max(1.0, random.gamma((mean / spread) ** 2, spread**2 / mean))


def tokens_per_second(tokens: float) -> Callable[[Random, float], float]:
    """Tokens of an answer that has so many a second of the clip."""
    return lambda _, seconds: tokens * seconds


def constant_tokens(tokens: float) -> Callable[[Random, float], float]:
    """Tokens of an answer that is always as long."""
    return lambda _, seconds: tokens


@dataclasses.dataclass(frozen=True)
class LengthModel:
    """Of one source: its clips, and the tokens of its answers, of its wordings, and of its questions if it has some."""

    seconds: Callable[[Random], float]
    answer_tokens: Callable[[Random, float], float]  # by the seconds that were heard
    prompt_tokens: int
    question_tokens: int = 0


# Seconds are of the paper's table: hours over samples.
SOURCES = {
    "librispeech": LengthModel(librispeech_seconds, tokens_per_second(3.6), 14),
    "gigaspeech": LengthModel(gigaspeech_seconds, tokens_per_second(3.9), 14),
    "covost2": LengthModel(normal_seconds(5.3, 1.8), lambda r, _: 1.7 * max(4.0, r.normal(21, 8)), 16),
    "audiocaps": LengthModel(normal_seconds(9.8, 0.5), tokens_of_words(8.8, 4), 12),
    "clotho": LengthModel(normal_seconds(21.6, 4.5), tokens_of_words(11.3, 3), 12),
    "librispeech_phones": LengthModel(librispeech_seconds, tokens_per_second(2.1 * 11), 16),
    "iemocap": LengthModel(normal_seconds(4.5, 2.5), constant_tokens(2), 12),
    "musiccaps": LengthModel(normal_seconds(10, 0), tokens_of_words(48, 18), 16),
    "librimix": LengthModel(
        normal_seconds(14.6, 3), lambda r, _: 3.6 * (librispeech_seconds(r) + librispeech_seconds(r)), 17
    ),
    "voxceleb1": LengthModel(normal_seconds(8.3, 2), constant_tokens(2), 20),
    "librispeech_gender": LengthModel(librispeech_seconds, constant_tokens(3), 14),
    "librispeech_qa": LengthModel(librispeech_seconds, tokens_of_words(13, 9), 0, 16),
    "wavcaps_qa": LengthModel(normal_seconds(10.1, 5), tokens_of_words(10, 7), 0, 14),
    "audiocaps_qa": LengthModel(normal_seconds(9.8, 0.5), tokens_of_words(10, 7), 0, 14),
    "millionsong_qa": LengthModel(normal_seconds(30, 0), tokens_of_words(14, 10), 0, 15),
    "musicnet_qa": LengthModel(normal_seconds(27, 0), tokens_of_words(14, 10), 0, 15),
}
TEMPLATE_TOKENS = 19  # tokens of the template, and of `<Speech>` and `</Speech>`


@dataclasses.dataclass(frozen=True)
class PackingStats:
    """What was measured; the original's figures are of the same examples."""

    token_utilization: float
    clip_utilization: float
    tokens_per_example: float  # that the language model computes, padding included
    original_tokens_per_example: float
    original_token_utilization: float
    max_wait_steps: int  # steps


class ExampleTokens(NamedTuple):
    """Tokens of an example: of its text up to the answer, of its audio as ours reads it, and of its answer."""

    prompt: int
    audio: int
    answer: int


class NoOpReader:
    """In the place of a reader pool, where only the order of the sources matters."""

    chunk = 1

    def read(self, refs: Sequence[SampleRef]) -> list[PendingSample]:
        done: Future = Future()
        done.set_result([None] * len(refs))
        return [PendingSample(ref, done, index) for index, ref in enumerate(refs)]


def drawn_sources(config: RunConfig, stream: int) -> Iterator[str]:
    """Yields the sources of the samples that a stream draws."""
    shares = normalise(config.data.mixture)
    samples = SampleIterDataset(shares, stream, config.data.streams, NoOpReader(), read_ahead=0)
    return (ref.source for ref, _ in samples)


def simulate_examples(config: RunConfig, sources: Iterable[str], random: Random) -> Iterator[ExampleTokens]:
    """Yields an example of each source in `sources`."""
    for source in sources:
        lengths = SOURCES[source]
        asked = lengths.question_tokens and lengths.question_tokens + int(random.integers(-6, 10))
        prompt = (
            TEMPLATE_TOKENS + lengths.prompt_tokens + asked + int(random.integers(-4, 5)) * (lengths.prompt_tokens > 0)
        )
        seconds = lengths.seconds(random)
        answer = min(config.data.max_answer_tokens, 1 + round(lengths.answer_tokens(random, seconds)))
        yield ExampleTokens(prompt, config.model.num_valid_audio_tokens(round(seconds * SAMPLE_RATE)), answer)


class Step(NamedTuple):
    """What is placed in the room of a step: examples, with the steps that each waited."""

    room: StepCapacity
    waits_and_examples: list[tuple[int, ExampleTokens]]


def simulate_packing(data: DataConfig, examples: Iterator[ExampleTokens]) -> Iterator[Step]:
    """Endless steps of one stream."""
    seq_lens = mixed_names(normalise(data.buckets or {str(data.seq_len): 1.0}))
    window: list[tuple[int, ExampleTokens]] = []  # the step since which it waits, and its lengths
    for step in count():
        window += [(step, next(examples)) for _ in range(data.lookahead - len(window))]
        room = step_capacities(data)[seq_lens[step]]
        rows = PACKINGS[data.packing]([ExampleSize(sum(lengths), 1) for _, lengths in window], room)
        chosen = {i for row in rows for i in row}
        yield Step(room, [(step - window[i][0], window[i][1]) for i in chosen])
        window = [entry for i, entry in enumerate(window) if i not in chosen]


def packed_by_grain(config: RunConfig, num_examples: int, num_bins: int) -> tuple[float, float]:
    """Returns the shares of tokens and of clip slots that grain's best-fit packer fills with so many examples."""
    examples = simulate_examples(config, drawn_sources(config, 0), np.random.default_rng(0))
    items = [
        {"tokens": np.zeros(sum(lengths), np.int8), "clips": np.zeros(1, np.int8)}
        for lengths in islice(examples, num_examples)
    ]
    room = step_capacities(config.data)[str(config.data.seq_len)]
    rows = grain.experimental.BestFitPackIterDataset(
        grain.MapDataset.source(items).to_iter_dataset(),
        length_struct={"tokens": room.seq_len, "clips": room.clips},
        num_packing_bins=num_bins,
        shuffle_bins=False,
    )
    filled = np.array([[(row[f"{name}_segment_ids"] > 0).mean() for name in ("tokens", "clips")] for row in rows])
    return tuple(filled.mean(axis=0))


def share_errors(steps: int) -> tuple[float, float, int]:
    """Returns how many samples a source is off its share after any step: in one stream, in all; and how many there are.

    Streams pack a few samples more or fewer in a step, and so draw at different speeds.
    """
    config = get_config("salmonn_13b_stage2")
    shares, streams = normalise(config.data.mixture), config.data.streams
    names = sorted(shares)
    ratios = np.array([shares[name] for name in names])
    counts = np.zeros((streams, len(names)))

    def counted(stream: int) -> Iterator[str]:
        for source in drawn_sources(config, stream):
            counts[stream, names.index(source)] += 1
            yield source

    packing = [
        simulate_packing(config.data, simulate_examples(config, counted(stream), np.random.default_rng(stream)))
        for stream in range(streams)
    ]
    in_one = in_all = 0.0
    for _ in zip(range(steps), *packing, strict=False):
        in_one = max(in_one, np.abs(counts - counts.sum(1, keepdims=True) * ratios).max())
        in_all = max(in_all, np.abs(counts.sum(0) - counts.sum() * ratios).max())
    return in_one, in_all, int(counts.sum())


def measure_packing(steps: int, variant: str, seed: int = 0) -> PackingStats:
    """Fills so many steps of one stream of `salmonn_13b_stage2`, one of the `WAYS`."""
    config = get_config("salmonn_13b_stage2")
    for path, text in VARIANTS[variant].items():
        config = configuration.apply_override(config, path, text)
    examples = simulate_examples(config, drawn_sources(config, 0), np.random.default_rng(seed))
    tokens, slots, waited, placed = 0, 0, 0, []
    for step in islice(simulate_packing(config.data, examples), steps):
        tokens, slots = tokens + step.room.rows * step.room.seq_len, slots + step.room.clips
        waited = max([waited, *(wait for wait, _ in step.waits_and_examples)])
        placed += [lengths for _, lengths in step.waits_and_examples]
    lengths = np.array(placed)
    whole = len(lengths) // ORIGINAL_BATCH_SIZE * ORIGINAL_BATCH_SIZE
    batches = np.random.default_rng(seed).permutation(lengths[:whole]).reshape(-1, ORIGINAL_BATCH_SIZE, 3)
    # The original pads prompts to the longest, and answers to the longest; of audio it always reads as much.
    padded = batches[:, :, [0, 2]].max(axis=1).sum(axis=1).mean() + config.model.num_audio_tokens
    return PackingStats(
        token_utilization=lengths.sum() / tokens,
        clip_utilization=len(lengths) / slots,
        tokens_per_example=tokens / len(lengths),
        original_tokens_per_example=padded,
        original_token_utilization=(lengths[:whole, [0, 2]].sum() / whole + config.model.num_audio_tokens) / padded,
        max_wait_steps=waited,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000, help="default: %(default)s")
    steps = parser.parse_args().steps
    for way in VARIANTS:
        found = measure_packing(steps, way)
        print(
            f"{way + ':':20} {found.token_utilization:.3f} of the tokens and {found.clip_utilization:.3f} of the clip "
            f"slots are used; {found.tokens_per_example:.0f} tokens an example, "
            f"longest wait {found.max_wait_steps} steps"
        )
    print(
        f"{f'original, by {ORIGINAL_BATCH_SIZE}:':20} {found.original_token_utilization:.3f} of the tokens are used; "
        f"{found.original_tokens_per_example:.0f} tokens an example"
    )
    config = get_config("salmonn_13b_stage2")
    for num_bins in (8, 64):
        tokens, clips = packed_by_grain(config, 6 * steps, num_bins)
        print(f"{f'grain, {num_bins} bins:':20} {tokens:.3f} of the tokens and {clips:.3f} of the clip slots are used")
    in_one, in_all, samples = share_errors(steps // config.data.streams)
    print(
        f"packed, {config.data.streams} streams: a source is off its share by at most {in_one:.1f} samples in a stream "
        f"and by {in_all:.1f} of {samples:,} in all"
    )


if __name__ == "__main__":
    main()
