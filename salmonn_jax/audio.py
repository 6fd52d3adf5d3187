"""From int16 PCM to the features of both encoders, in JAX and inside the jitted step.

One implementation serves training, evaluation and serving, and the host sends 2 bytes a sample instead of the 5.3 of
two float feature maps. Sources: `WhisperFeatureExtractor` of Hugging Face transformers, and Kaldi's
`compute-fbank-feats` as torchaudio's `compliance.kaldi.fbank` computes it.

Letters: A clips, N samples, T frames, M mel bins.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from salmonn_jax.config import HOP_LENGTH, SAMPLE_RATE

FRAME_LENGTH = 400  # samples, 25 ms
KALDI_FFT = 512
KALDI_FLOOR = float(np.finfo(np.float32).eps)
# BEATs normalises with twice the standard deviation (`BEATs.preprocess`).
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582


def log_mel_spectrogram(pcm: Array, num_mel_bins: int = 80) -> Array:
    """Whisper's log-mel spectrogram: int16[A,N] -> float32[A,T,M] with T = N / 160.

    The maximum from which values are cut at 8 decades is each row's own, over the padded window, as in the original.
    """
    x = pcm.astype(jnp.float32) / 32768.0
    x = jnp.pad(x, ((0, 0), (FRAME_LENGTH // 2, FRAME_LENGTH // 2)), mode="reflect")
    window = np.hanning(FRAME_LENGTH + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(_frame_signal(x, pcm.shape[1] // HOP_LENGTH) * window)
    mel = jnp.square(jnp.abs(spectrum)) @ _slaney_filters(num_mel_bins)
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    log = jnp.maximum(log, log.max(axis=(1, 2), keepdims=True) - 8.0)
    return (log + 4.0) / 4.0


def fbank(pcm: Array, num_mel_bins: int = 128) -> Array:
    """Kaldi filter bank as BEATs normalises it: int16[A,N] -> float32[A,T,M] with T = (N - 400) // 160 + 1."""
    frames = _frame_signal(pcm.astype(jnp.float32), num_fbank_frames(pcm.shape[1]))
    frames = frames - frames.mean(axis=-1, keepdims=True)
    previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    frames = (frames - 0.97 * previous) * (np.hanning(FRAME_LENGTH) ** 0.85).astype(np.float32)
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames, n=KALDI_FFT)))
    log = jnp.log(jnp.maximum(power @ _kaldi_filters(num_mel_bins), KALDI_FLOOR))
    return (log - FBANK_MEAN) / (2 * FBANK_STD)


def num_fbank_frames(num_samples: Array | int) -> Array | int:
    """How many whole 25 ms frames fit into so many samples."""
    return (num_samples - FRAME_LENGTH) // HOP_LENGTH + 1


def _frame_signal(x: Array, num_frames: int) -> Array:
    """Overlapping frames float32[A,count,400] of float32[A,N], by shifted reshapes: no gather."""
    span = -(-FRAME_LENGTH // HOP_LENGTH)
    need = (num_frames - 1 + span) * HOP_LENGTH
    x = jnp.pad(x, ((0, 0), (0, max(0, need - x.shape[1]))))[:, :need]
    hops = x.reshape(x.shape[0], num_frames - 1 + span, HOP_LENGTH)
    return jnp.concatenate([hops[:, i : i + num_frames] for i in range(span)], axis=-1)[..., :FRAME_LENGTH]


@functools.cache
def _slaney_filters(num_mel_bins: int) -> np.ndarray:
    """Slaney-scaled, Slaney-normalised triangles, float32[201,M]."""
    import librosa  # slow to import, and needed once

    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FRAME_LENGTH, n_mels=num_mel_bins).T.astype(np.float32)


@functools.cache
def _kaldi_filters(num_mel_bins: int) -> np.ndarray:
    """Triangles evenly spaced in Kaldi's mel scale from 20 Hz to 8 kHz, float32[257,M]; the Nyquist row is zero."""

    def to_mel(hertz):
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    low, high = to_mel(20.0), to_mel(SAMPLE_RATE / 2)
    edges = low + (high - low) / (num_mel_bins + 1) * np.arange(num_mel_bins + 2)
    bins = to_mel(np.arange(KALDI_FFT // 2) * SAMPLE_RATE / KALDI_FFT)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return np.concatenate([np.maximum(triangles, 0.0), np.zeros((1, num_mel_bins))]).astype(np.float32)
