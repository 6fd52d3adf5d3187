"""Which source an example comes from: shares that are exact from the first example on, in every stream.

A mixture is a share for each source. A stream takes its examples one by one; after any number k of them, source s with
share w has been taken k w times, give or take less than one. Streams begin at phases of their own, so that what is rare
does not fall on the same steps everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.entries import BadExample
from data_pipelines.examples import Example
from salmonn_jax.config import SAMPLE_RATE, DataConfig
from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer

AHEAD = 128  # draws that are looked ahead for deadlines
MEASURED = 64  # examples of a source from which its mean length is taken
_ROUNDING = 1e-9


class Mix:
    """The order in which one stream takes from its sources: a function of the shares and the number of the stream.

    The i-th example of a source with share w must come after (i - 1) / w draws and before i / w. (Tasks that share a
    processor so are called P-fair; Baruah et al. 1996.) Among the sources that may come, the one whose time by the
    stream's phase is earliest does, unless another's deadline would be missed.

    Args:
      shares: by source; they sum to one.
      stream: its number.
      state: of a mix that goes on. With other shares than it had, shares are exact from here on.
    """

    def __init__(self, shares: Mapping[str, float], stream: int, state: Mapping[str, Any] | None = None):
        state = state or {"shares": dict(shares), "drawn": {}, "before": {}}
        self.drawn: dict[str, int] = dict.fromkeys(shares, 0) | state["drawn"]  # how often a source was taken, ever
        self._before = state["before"] if state["shares"] == dict(shares) else dict(self.drawn)
        self._names = sorted(shares)
        self._shares = np.array([shares[name] for name in self._names])
        self._counts = np.array([self.drawn[name] - self._before.get(name, 0) for name in self._names], np.int64)
        self._phases = np.array([phase(stream, number) for number in range(len(self._names))])
        self._due = np.arange(AHEAD)[:, None] * self._shares + _ROUNDING

    def state(self) -> dict[str, Any]:
        """All that it is, as JSON."""
        shares = dict(zip(self._names, self._shares.tolist(), strict=True))
        return {"shares": shares, "drawn": dict(self.drawn), "before": self._before}

    def draw(self) -> tuple[str, int]:
        """The next source, and how often it was taken before."""
        total, counts, shares = int(self._counts.sum()), self._counts, self._shares
        may = (total + 1) * shares - counts > _ROUNDING
        # How many examples of each source must have come within the next h draws, this one being the first.
        must = np.maximum(np.floor((total + 1) * shares + self._due) - counts, 0)
        full = np.flatnonzero(must.sum(axis=1) > np.arange(AHEAD))
        if len(full):
            may &= must[full[0]] > 0
        times = np.where(may, (counts + 0.5 - self._phases) / shares, np.inf)
        chosen = int(times.argmin())
        counts[chosen] += 1
        name = self._names[chosen]
        self.drawn[name] += 1
        return name, self.drawn[name] - 1


def phase(stream: int, number: int) -> float:
    """Where in its turn a source begins in a stream: in -0.5 to 0.5, spread evenly over streams for each source.

    By multiples of the square roots of primes, which no two sources share.
    """
    primes = (p for p in itertools.count(2) if all(p % q for q in range(2, math.isqrt(p) + 1)))
    root = math.sqrt(next(itertools.islice(primes, number, None)))
    return (0.5 + stream * root) % 1.0 - 0.5


def shares(data: DataConfig, means: Mapping[str, float]) -> dict[str, float]:
    """The share of examples of each source of a configuration; they sum to one.

    Args:
      data: its weights count what `data.unit` says.
      means: of an example of each source, in that unit (see `measure`); not used where weights count examples.

    Raises:
      UserError: a weight is not above 0, or the older sources leave nothing to the others.
    """
    for name, weight in {**data.mixture, **data.replay}.items():
        if not weight > 0:
            raise UserError(
                f"the weight of source {name!r} is {weight}; it must be above 0 (leave the source out instead)"
            )
    both = sorted(data.mixture.keys() & data.replay.keys())
    if both:
        raise UserError(f"source {both[0]!r} is in data.mixture and in data.replay; leave it out of one")
    if not data.mixture:
        raise UserError("data.mixture names no source; give it {name: weight}")
    mixture = normalised({name: w ** (1 / data.temperature) for name, w in normalised(data.mixture).items()})
    if data.replay_as == "additive":
        whole = mixture | data.replay
    else:
        rest = 1.0 - sum(data.replay.values())
        if rest <= 0:
            raise UserError(f"data.replay takes {1 - rest:g} of everything; shares must leave some to data.mixture")
        whole = {name: rest * w for name, w in mixture.items()} | data.replay
    if data.unit != "examples":
        unknown = [name for name in sorted(whole) if not means[name] > 0]
        if unknown:
            raise UserError(f"source {unknown[0]!r} has no {data.unit}, in which data.unit says weights are; change it")
        whole = {name: w / means[name] for name, w in whole.items()}
    return normalised(whole)


def measure(examples: Sequence[Example], unit: str, tokenizer: Tokenizer, answer: int) -> float:
    """The mean of an example of a source: its hours of audio, or its tokens that are to be predicted.

    Taken from at most `MEASURED` examples spread evenly over the source; those that cannot be used are left out.
    """
    found = []
    for index in np.linspace(0, len(examples) - 1, min(MEASURED, len(examples))).astype(int):
        try:
            example = examples[int(index)]
        except BadExample:
            continue
        if unit == "hours":
            found.append(0.0 if example.audio is None else len(example.audio) / SAMPLE_RATE / 3600)
        else:
            found.append(min(len(tokenizer.encode(example.answer)) + 1, answer))
    return float(np.mean(found)) if found else 0.0


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights over their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
