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

from data_pipelines.stream.mixture import normalised
from data_pipelines.stream.packing import PACKINGS, Room, Size, rooms
from data_pipelines.stream.reading import PendingSample, SampleIterDataset, mixed_names
from data_pipelines.stream.samples import SampleRef
from salmonn_jax import config as configuration
from salmonn_jax.config import SAMPLE_RATE, DataConfig, RunConfig
from salmonn_jax.configs import get_config

Random = np.random.Generator
ORIGINAL_BATCH = 8  # examples on one GPU, padded to the longest
# Ways to lay the same examples out: changes to `salmonn_13b_stage2`, which packs.
WAYS = {
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


def read_aloud(random: Random) -> float:
    """Seconds of a LibriSpeech utterance: most are near 15, none longer than 17."""
    return float(np.clip(16 - abs(random.normal(0, 5)), 1.5, 16.5))


def conversation(random: Random) -> float:
    """Seconds of a GigaSpeech segment: 4 on average."""
    return float(np.clip(random.gamma(1.6, 2.5), 0.5, 20))


def about(mean: float, spread: float) -> Callable[[Random], float]:
    """Seconds of clips of a corpus whose mean is known, 30 at most."""
    return lambda random: float(np.clip(random.normal(mean, spread), 0.5, 30))


def words(mean: float, spread: float) -> Callable[[Random, float], float]:
    """Tokens of an answer of so many words."""
    return lambda random, _: 1.35 * max(1.0, random.gamma((mean / spread) ** 2, spread**2 / mean))


def spoken(tokens: float) -> Callable[[Random, float], float]:
    """Tokens of an answer that has so many a second of the clip."""
    return lambda _, seconds: tokens * seconds


def always(tokens: float) -> Callable[[Random, float], float]:
    """Tokens of an answer that is always as long."""
    return lambda _, seconds: tokens


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of one source: its clips, and the tokens of its answers, of its wordings, and of its questions if it has some."""

    seconds: Callable[[Random], float]
    answer: Callable[[Random, float], float]  # by the seconds that were heard
    wording: int
    question: int = 0


# Seconds are of the paper's table: hours over samples.
SOURCES = {
    "librispeech": Lengths(read_aloud, spoken(3.6), 14),
    "gigaspeech": Lengths(conversation, spoken(3.9), 14),
    "covost2": Lengths(about(5.3, 1.8), lambda r, _: 1.7 * max(4.0, r.normal(21, 8)), 16),
    "audiocaps": Lengths(about(9.8, 0.5), words(8.8, 4), 12),
    "clotho": Lengths(about(21.6, 4.5), words(11.3, 3), 12),
    "librispeech_phones": Lengths(read_aloud, spoken(2.1 * 11), 16),
    "iemocap": Lengths(about(4.5, 2.5), always(2), 12),
    "musiccaps": Lengths(about(10, 0), words(48, 18), 16),
    "librimix": Lengths(about(14.6, 3), lambda r, _: 3.6 * (read_aloud(r) + read_aloud(r)), 17),
    "voxceleb1": Lengths(about(8.3, 2), always(2), 20),
    "librispeech_gender": Lengths(read_aloud, always(3), 14),
    "librispeech_qa": Lengths(read_aloud, words(13, 9), 0, 16),
    "wavcaps_qa": Lengths(about(10.1, 5), words(10, 7), 0, 14),
    "audiocaps_qa": Lengths(about(9.8, 0.5), words(10, 7), 0, 14),
    "millionsong_qa": Lengths(about(30, 0), words(14, 10), 0, 15),
    "musicnet_qa": Lengths(about(27, 0), words(14, 10), 0, 15),
}
AROUND = 19  # tokens of the template, and of `<Speech>` and `</Speech>`


@dataclasses.dataclass(frozen=True)
class Fill:
    """What was measured; the original's figures are of the same examples."""

    tokens_filled: float
    clips_filled: float
    tokens_an_example: float  # that the language model computes, padding included
    original_tokens_an_example: float
    original_tokens_filled: float
    longest_wait: int  # steps


class Drawn(NamedTuple):
    """Tokens of an example: of its text up to the answer, of its audio as ours reads it, and of its answer."""

    prompt: int
    audio: int
    answer: int


class NothingRead:
    """In the place of a reader pool, where only the order of the sources matters."""

    chunk = 1

    def read(self, refs: Sequence[SampleRef]) -> list[PendingSample]:
        done: Future = Future()
        done.set_result([None] * len(refs))
        return [PendingSample(ref, done, index) for index, ref in enumerate(refs)]


def drawn_sources(config: RunConfig, stream: int) -> Iterator[str]:
    """Yields the sources of the samples that a stream draws."""
    shares = normalised(config.data.mixture)
    samples = SampleIterDataset(shares, stream, config.data.streams, NothingRead(), read_ahead=0)
    return (ref.source for ref, _ in samples)


def simulated(config: RunConfig, sources: Iterable[str], random: Random) -> Iterator[Drawn]:
    """Yields an example of each source in `sources`."""
    for source in sources:
        lengths = SOURCES[source]
        asked = lengths.question and lengths.question + int(random.integers(-6, 10))
        prompt = AROUND + lengths.wording + asked + int(random.integers(-4, 5)) * (lengths.wording > 0)
        seconds = lengths.seconds(random)
        answer = min(config.data.max_answer_tokens, 1 + round(lengths.answer(random, seconds)))
        yield Drawn(prompt, config.model.audio_tokens_of(round(seconds * SAMPLE_RATE)), answer)


class Step(NamedTuple):
    """What is placed in the room of a step: examples, with the steps that each waited."""

    room: Room
    placed: list[tuple[int, Drawn]]


def packed(data: DataConfig, examples: Iterator[Drawn]) -> Iterator[Step]:
    """Endless steps of one stream."""
    seq_lens = mixed_names(normalised(data.buckets or {str(data.seq_len): 1.0}))
    window: list[tuple[int, Drawn]] = []  # the step since which it waits, and its lengths
    for step in count():
        window += [(step, next(examples)) for _ in range(data.lookahead - len(window))]
        room = rooms(data)[seq_lens[step]]
        rows = PACKINGS[data.packing]([Size(sum(lengths), 1) for _, lengths in window], room)
        chosen = {i for row in rows for i in row}
        yield Step(room, [(step - window[i][0], window[i][1]) for i in chosen])
        window = [entry for i, entry in enumerate(window) if i not in chosen]


def packed_by_grain(config: RunConfig, num_examples: int, num_bins: int) -> tuple[float, float]:
    """Returns the shares of tokens and of clip slots that grain's best-fit packer fills with so many examples."""
    examples = simulated(config, drawn_sources(config, 0), np.random.default_rng(0))
    items = [
        {"tokens": np.zeros(sum(lengths), np.int8), "clips": np.zeros(1, np.int8)}
        for lengths in islice(examples, num_examples)
    ]
    room = rooms(config.data)[str(config.data.seq_len)]
    rows = grain.experimental.BestFitPackIterDataset(
        grain.MapDataset.source(items).to_iter_dataset(),
        length_struct={"tokens": room.sequence, "clips": room.clips},
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
    shares, streams = normalised(config.data.mixture), config.data.streams
    names = sorted(shares)
    ratios = np.array([shares[name] for name in names])
    counts = np.zeros((streams, len(names)))

    def counted(stream: int) -> Iterator[str]:
        for source in drawn_sources(config, stream):
            counts[stream, names.index(source)] += 1
            yield source

    packing = [
        packed(config.data, simulated(config, counted(stream), np.random.default_rng(stream)))
        for stream in range(streams)
    ]
    in_one = in_all = 0.0
    for _ in zip(range(steps), *packing, strict=False):
        in_one = max(in_one, np.abs(counts - counts.sum(1, keepdims=True) * ratios).max())
        in_all = max(in_all, np.abs(counts.sum(0) - counts.sum() * ratios).max())
    return in_one, in_all, int(counts.sum())


def measured(steps: int, way: str, seed: int = 0) -> Fill:
    """Fills so many steps of one stream of `salmonn_13b_stage2`, one of the `WAYS`."""
    config = get_config("salmonn_13b_stage2")
    for path, text in WAYS[way].items():
        config = configuration.replace(config, path, text)
    examples = simulated(config, drawn_sources(config, 0), np.random.default_rng(seed))
    tokens, slots, waited, placed = 0, 0, 0, []
    for step in islice(packed(config.data, examples), steps):
        tokens, slots = tokens + step.room.rows * step.room.sequence, slots + step.room.clips
        waited = max([waited, *(wait for wait, _ in step.placed)])
        placed += [lengths for _, lengths in step.placed]
    lengths = np.array(placed)
    whole = len(lengths) // ORIGINAL_BATCH * ORIGINAL_BATCH
    batches = np.random.default_rng(seed).permutation(lengths[:whole]).reshape(-1, ORIGINAL_BATCH, 3)
    # The original pads prompts to the longest, and answers to the longest; of audio it always reads as much.
    padded = batches[:, :, [0, 2]].max(axis=1).sum(axis=1).mean() + config.model.audio_tokens
    return Fill(
        tokens_filled=lengths.sum() / tokens,
        clips_filled=len(lengths) / slots,
        tokens_an_example=tokens / len(lengths),
        original_tokens_an_example=padded,
        original_tokens_filled=(lengths[:whole, [0, 2]].sum() / whole + config.model.audio_tokens) / padded,
        longest_wait=waited,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000, help="default: %(default)s")
    steps = parser.parse_args().steps
    for way in WAYS:
        found = measured(steps, way)
        print(
            f"{way + ':':20} {found.tokens_filled:.3f} of the tokens and {found.clips_filled:.3f} of the clip slots "
            f"are used; {found.tokens_an_example:.0f} tokens an example, longest wait {found.longest_wait} steps"
        )
    print(
        f"{f'original, by {ORIGINAL_BATCH}:':20} {found.original_tokens_filled:.3f} of the tokens are used; "
        f"{found.original_tokens_an_example:.0f} tokens an example"
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
