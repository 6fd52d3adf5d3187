"""Limits of audio files that all decoders share."""

from __future__ import annotations

from salmonn_jax.errors import AudioError

# Telephone speech has 8,000 Hz; the fastest converters have 768,000 Hz. Other rates come from damaged headers, and
# resampling from a few Hz to 16 kHz would multiply the size of a file by thousands.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000

MISSING_SECONDS = 0.05  # a file that lacks more than this of its declared duration is incomplete


def check_sample_rate(rate: int, name: str) -> None:
    """Raises AudioError if a sample rate in Hz is impossible. `name` is the name of the audio in the message."""
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            "undecodable",
            f"{name} has a sample rate of {rate} Hz; it must be {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz",
        )


def sample_range(start: float, end: float | None, rate: int) -> tuple[int, int | None]:
    """Converts seconds to sample indices. An `end` of None stays None."""
    return round(start * rate), None if end is None else round(end * rate)
