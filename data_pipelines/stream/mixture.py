"""Shares of the sources in the training mixture, from weights in any unit and replayed sources."""

from __future__ import annotations

from collections.abc import Mapping

from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError


def source_shares(data: DataConfig, mean_sizes: Mapping[str, float]) -> dict[str, float]:
    """Returns the share of the examples that each source has. The shares sum to 1.

    Args:
      data: the weights of the sources, counted in `data.weight_unit`.
      mean_sizes: mean size of an example of each source, in that unit. Not used if weights count examples.

    Raises:
      UserError: a source is in both `mixture` and `replay`, `mixture` is empty, `replay` leaves nothing to it, or a
        source has no hours or tokens, the unit of its weight.
    """
    both = sorted(data.mixture.keys() & data.replay.keys())
    if both:
        raise UserError(f"source {both[0]!r} is in data.mixture and in data.replay; leave it out of one")
    if not data.mixture:
        raise UserError("data.mixture names no source; give it {name: weight}")
    mixture = normalise({name: w ** (1 / data.temperature) for name, w in normalise(data.mixture).items()})
    if data.replay_as == "additive":
        weights = mixture | data.replay
    else:
        rest = 1.0 - sum(data.replay.values())
        if rest <= 0:
            raise UserError(
                f"data.replay takes {1 - rest:g} of all examples; lower its shares so that data.mixture keeps some"
            )
        weights = {name: rest * w for name, w in mixture.items()} | data.replay
    if data.weight_unit != "examples":
        unknown = [name for name in sorted(weights) if not mean_sizes[name] > 0]
        if unknown:
            raise UserError(
                f"source {unknown[0]!r} has no {data.weight_unit}, the unit of its weight; change data.weight_unit"
            )
        weights = {name: w / mean_sizes[name] for name, w in weights.items()}
    return normalise(weights)


def normalise(weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights divided by their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
