"""Configuration of a small encoder for tests. It imports no JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from salmonn_jax.config.encoder import EncoderConfig
from salmonn_jax.config.typed import STRICT, PositiveInt

if TYPE_CHECKING:
    from salmonn_jax.models.strided.encoder import StridedEncoder


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StridedConfig(EncoderConfig):
    """A strided convolution over raw PCM."""

    hidden_size: PositiveInt = Field(8, description="hidden size")
    stride: PositiveInt = Field(320, description="samples of a frame")

    @property
    def output_size(self) -> int:
        """Returns the size of an encoder frame."""
        return self.hidden_size

    @staticmethod
    def encoder_class() -> type[StridedEncoder]:
        """Returns the module of the encoder."""
        from salmonn_jax.models.strided.encoder import StridedEncoder

        return StridedEncoder
