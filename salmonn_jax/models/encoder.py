"""Contract of the audio encoders, and their registry."""

from __future__ import annotations

import abc
import functools
from typing import ClassVar, NamedTuple

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int16, Int32

from salmonn_jax.config import AudioConfig, EncoderConfig, ModelConfig
from salmonn_jax.models.common import ShardingRules


class EncoderOutput(NamedTuple):
    """Frames of an encoder, 50 a second."""

    frames: Array  # float[clips, frames, hidden]
    exists: Array | None = None  # bool[clips, frames]: SALMONN replaces other frames by zeros; None: all exist


class EncoderFlops(NamedTuple):
    """FLOPs of the matrix products of a forward pass of one clip. A multiply-add counts as two."""

    features: int  # of the front end
    layers: int


class Encoder(nnx.Module, abc.ABC):
    """Audio encoder: PCM in, frames out.

    Attributes:
      norm_name: name of the layer norm of the frames in SALMONN, the first part of its parameters' paths.
      sharding_rules: sharding rules of the frozen weights, by path inside the encoder.
    """

    norm_name: ClassVar[str]
    sharding_rules: ClassVar[ShardingRules]

    @abc.abstractmethod
    def __init__(self, config: EncoderConfig, audio: AudioConfig, *, rngs: nnx.Rngs):
        """Creates random float32 parameters for the encoder input that `audio` describes."""

    @abc.abstractmethod
    def __call__(
        self,
        pcm: Int16[Array, "clips samples"],
        pcm_length: Int32[Array, " clips"],
        padded_length: Int32[Array, " clips"],
        dtype: DTypeLike,
    ) -> EncoderOutput:
        """Encodes clips.

        Args:
          pcm: clips, zero-padded to the window.
          pcm_length: samples of each clip.
          padded_length: samples of each clip and of the padding that the original adds (see `Salmonn`).
          dtype: dtype of activations.

        Returns:
          Frames at 50 a second from the start of the window. SALMONN cuts them, or pads them with zeros, to the length
          of the window.
        """

    @staticmethod
    @abc.abstractmethod
    def flops(config: EncoderConfig, audio: AudioConfig) -> EncoderFlops:
        """Returns the FLOPs of a clip of the window's length."""


@functools.cache
def encoder_classes() -> dict[str, type[Encoder]]:
    """Returns the module of each encoder that a model can have, by the name of its field in `ModelConfig`."""
    return {name: config_class.encoder_class() for name, config_class in ModelConfig.encoder_classes().items()}
