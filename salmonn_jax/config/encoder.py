"""Base class of the configurations of audio encoders."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salmonn_jax.models.encoder import Encoder


class EncoderConfig(abc.ABC):
    """Configuration of an audio encoder. Every field of `ModelConfig` of such a class is an encoder.

    The name of the field is the encoder's name in `Recipe.trainable` and the first part of its parameters' paths.
    """

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """Returns the size of an encoder frame."""

    @staticmethod
    @abc.abstractmethod
    def encoder_class() -> type[Encoder]:
        """Returns the module of the encoder. It imports JAX, which configurations do not, so it is imported here."""
