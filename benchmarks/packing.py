"""How much of the rows and clips of stage 2 is filled, our ways and as the original pads: python -m benchmarks.packing

Lengths are simulated, for the corpora are licensed: of each source of the paper's table its share, how long its
answers are, and its prompt. Clips are as long as the corpora say; tokens a second or a word are LLaMA's on English
(1.35 a word, 2.7 words a second read aloud), on Chinese (1.7 a character), and on phones (2.1 each, 11 a second).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data_pipelines.stream.mixture import normalised
from data_pipelines.stream.packing import PACKINGS, Room, Size, rooms
from data_pipelines.stream.schedule import Mix, Orders
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


def simulated(config: RunConfig, mix: Mix, random: Random) -> Iterator[Drawn]:
    """Endless examples of a mixture."""
    while True:
        lengths = SOURCES[mix.draw()[0]]
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
    shares = normalised(data.buckets or {str(data.seq_len): 1.0})
    lengths_of_steps = Mix(Orders(shares, 1, [0]), 0)
    window: list[tuple[int, Drawn]] = []  # the step since which it waits, and its lengths
    for step in itertools.count():
        window += [(step, next(examples)) for _ in range(data.lookahead - len(window))]
        room = rooms(data)[lengths_of_steps.draw()[0]]
        rows = PACKINGS[data.packing]([Size(sum(lengths), 1) for _, lengths in window], room)
        chosen = {i for row in rows for i in row}
        yield Step(room, [(step - window[i][0], window[i][1]) for i in chosen])
        window = [entry for i, entry in enumerate(window) if i not in chosen]


def off_shares(steps: int) -> tuple[float, int]:
    """How far sources are from their shares, at most, after any of so many steps of all streams; and the draws."""
    config = get_config("salmonn_13b_stage2")
    shares, streams = normalised(config.data.mixture), config.data.streams
    orders = Orders(shares, streams, range(streams))
    mixes = [Mix(orders, stream) for stream in range(streams)]
    drawn = [simulated(config, mix, np.random.default_rng(i)) for i, mix in enumerate(mixes)]
    off, counts = 0.0, {}
    for _ in zip(range(steps), *(packed(config.data, examples) for examples in drawn), strict=False):
        counts = {name: sum(mix.drawn[name] for mix in mixes) for name in shares}
        off = max([off, *(abs(counts[name] - shares[name] * sum(counts.values())) for name in shares)])
    return off, sum(counts.values())


def measured(steps: int, way: str, seed: int = 0) -> Fill:
    """Fills so many steps of one stream of `salmonn_13b_stage2`, one of the `WAYS`."""
    config = get_config("salmonn_13b_stage2")
    for path, text in WAYS[way].items():
        config = configuration.replace(config, path, text)
    mix = Mix(Orders(normalised(config.data.mixture), config.data.streams, [0]), 0)
    tokens, slots, waited, placed = 0, 0, 0, []
    for step in itertools.islice(packed(config.data, simulated(config, mix, np.random.default_rng(seed))), steps):
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
    off, draws = off_shares(steps // get_config("salmonn_13b_stage2").data.streams)
    print(f"packed, all streams together: no source is further than {off:.1f} from its share of {draws:,} draws")


if __name__ == "__main__":
    main()
