"""Which share of the examples each source has: weights in any unit, and older sources on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.examples import BadExample, Example
from salmonn_jax.config import SAMPLE_RATE, DataConfig
from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer

MEASURED_EXAMPLES = 64  # examples of a source from which its mean length is taken


def source_shares(data: DataConfig, mean_sizes: Mapping[str, float]) -> dict[str, float]:
    """The share of examples of each source of a configuration; they sum to one.

    Args:
      data: its weights count what `data.weight_unit` says.
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
    mixture = normalise({name: w ** (1 / data.temperature) for name, w in normalise(data.mixture).items()})
    if data.replay_as == "additive":
        whole = mixture | data.replay
    else:
        rest = 1.0 - sum(data.replay.values())
        if rest <= 0:
            raise UserError(f"data.replay takes {1 - rest:g} of everything; shares must leave some to data.mixture")
        whole = {name: rest * w for name, w in mixture.items()} | data.replay
    if data.weight_unit != "examples":
        unknown = [name for name in sorted(whole) if not mean_sizes[name] > 0]
        if unknown:
            raise UserError(
                f"source {unknown[0]!r} has no {data.weight_unit}, the unit of its weight; change data.weight_unit"
            )
        whole = {name: w / mean_sizes[name] for name, w in whole.items()}
    return normalise(whole)


def mean_example_size(examples: Sequence[Example], unit: str, tokenizer: Tokenizer, max_answer_tokens: int) -> float:
    """The mean of an example of a source: its hours of audio, or its tokens that are to be predicted.

    Taken from at most `MEASURED` examples spread evenly over the source; those that cannot be used are left out.
    """
    found = []
    for index in np.linspace(0, len(examples) - 1, min(MEASURED_EXAMPLES, len(examples))).astype(int):
        try:
            example = examples[int(index)]
        except BadExample:
            continue
        if unit == "hours":
            found.append(0.0 if example.audio is None else len(example.audio) / SAMPLE_RATE / 3600)
        else:
            found.append(min(len(tokenizer.encode(example.answer)) + 1, max_answer_tokens))
    return float(np.mean(found)) if found else 0.0


def normalise(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights over their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
