"""How much of the rows and clips of stage 2 is filled, our ways and as the original pads: python -m benchmarks.packing

Lengths are simulated, for the corpora are licensed: of each source of the paper's table its share, how long its
answers are, and its prompt. Clips are as long as the corpora say; tokens a second or a word are LLaMA's on English
(1.35 a word, 2.7 words a second read aloud), on Chinese (1.7 a character), and on phones (2.1 each, 11 a second).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from data_pipelines.mixture import normalised
from data_pipelines.packing import PACKINGS, Size, rooms
from data_pipelines.schedule import Mix, orders
from salmonn_jax.config import DataConfig
from salmonn_jax.configs import get_config

Random = np.random.Generator
ORIGINAL_BATCH = 8  # examples on one GPU, padded to the longest
# Ways to lay the same examples out: changes to the data of `salmonn_13b_stage2`, which packs.
WAYS = {
    "packed": {},
    "padded, in buckets": {
        "packing": "pad",
        "rows": 384,
        "sequence": 448,
        "buckets": {"144": 0.53, "192": 0.32, "448": 0.15},
    },
    "padded": {"packing": "pad", "rows": 384, "sequence": 448},
}


def read_aloud(random: Random) -> float:
    """Seconds of a LibriSpeech utterance: most are near 15, none longer than 17."""
    return float(np.clip(16 - abs(random.normal(0, 5)), 1.5, 16.5))


def conversation(random: Random) -> float:
    """Seconds of a GigaSpeech segment: 4 on average."""
    return float(np.clip(random.gamma(1.6, 2.5), 0.5, 20))


def words(mean: float, spread: float) -> Callable[[Random], float]:
    """Tokens of an answer of so many words."""
    return lambda random: 1.35 * max(1.0, random.gamma((mean / spread) ** 2, spread**2 / mean))


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of one source: tokens of its answers, of the wordings of its task, and of the question where it has one."""

    answer: Callable[[Random], float]
    wording: int
    question: int = 0


SOURCES = {
    "librispeech": Lengths(lambda r: 3.6 * read_aloud(r), 14),
    "gigaspeech": Lengths(lambda r: 3.9 * conversation(r), 14),
    "covost2": Lengths(lambda r: 1.7 * max(4.0, r.normal(21, 8)), 16),
    "audiocaps": Lengths(words(8.8, 4), 12),
    "clotho": Lengths(words(11.3, 3), 12),
    "librispeech_phones": Lengths(lambda r: 2.1 * 11 * read_aloud(r), 16),
    "iemocap": Lengths(lambda r: 2.0, 12),
    "musiccaps": Lengths(words(48, 18), 16),
    "librimix": Lengths(lambda r: 3.6 * (read_aloud(r) + read_aloud(r)), 17),
    "voxceleb1": Lengths(lambda r: 2.0, 20),
    "librispeech_gender": Lengths(lambda r: 3.0, 14),
    "librispeech_qa": Lengths(words(13, 9), 0, 16),
    "wavcaps_qa": Lengths(words(10, 7), 0, 14),
    "audiocaps_qa": Lengths(words(10, 7), 0, 14),
    "millionsong_qa": Lengths(words(14, 10), 0, 15),
    "musicnet_qa": Lengths(words(14, 10), 0, 15),
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


def simulated(data: DataConfig, audio_tokens: int, random: Random) -> Iterator[tuple[int, int]]:
    """Endless (tokens of the prompt with its audio, tokens of the answer)."""
    names = sorted(data.mixture)
    shares = np.array([data.mixture[name] for name in names])
    while True:
        lengths = SOURCES[names[random.choice(len(names), p=shares / shares.sum())]]
        asked = lengths.question and lengths.question + int(random.integers(-6, 10))
        prompt = AROUND + lengths.wording + asked + int(random.integers(-4, 5)) * (lengths.wording > 0)
        yield prompt + audio_tokens, min(data.answer, 1 + round(lengths.answer(random)))


def measured(steps: int, way: str, seed: int = 0) -> Fill:
    """Fills so many steps of one stream of `salmonn_13b_stage2`, one of the `WAYS`."""
    config = get_config("salmonn_13b_stage2")
    data, model = dataclasses.replace(config.data, **WAYS[way]), config.model
    examples = simulated(data, model.audio_tokens, np.random.default_rng(seed))
    shares = normalised(data.buckets or {str(data.sequence): 1.0})
    lengths_of_steps, tokens, slots = Mix(shares, orders(shares, 1, [0])[0]), 0, 0
    window: list[tuple[int, tuple[int, int]]] = []  # the step since which it waits, and its lengths
    placed, waited = [], 0
    for step in range(steps):
        window += [(step, next(examples)) for _ in range(data.lookahead - len(window))]
        room = rooms(data)[lengths_of_steps.draw()[0]]
        tokens, slots = tokens + room.rows * room.sequence, slots + room.clips
        rows = PACKINGS[data.packing]([Size(sum(lengths), 1) for _, lengths in window], room)
        chosen = {i for row in rows for i in row}
        waited = max([waited, *(step - window[i][0] for i in chosen)])
        placed += [window[i][1] for i in chosen]
        window = [entry for i, entry in enumerate(window) if i not in chosen]
    lengths = np.array(placed)
    whole = len(lengths) // ORIGINAL_BATCH * ORIGINAL_BATCH
    batches = np.random.default_rng(seed).permutation(lengths[:whole]).reshape(-1, ORIGINAL_BATCH, 2)
    # The original pads prompts to the longest, and answers to the longest.
    padded = batches.max(axis=1).sum(axis=1).mean()
    return Fill(
        tokens_filled=lengths.sum() / tokens,
        clips_filled=len(lengths) / slots,
        tokens_an_example=tokens / len(lengths),
        original_tokens_an_example=padded,
        original_tokens_filled=lengths[:whole].sum() / (padded * whole),
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


if __name__ == "__main__":
    main()
