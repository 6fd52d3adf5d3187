"""Configuration of Whisper's encoder. It imports no JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from salmonn_jax.config.encoder import EncoderConfig
from salmonn_jax.config.typed import STRICT, PositiveInt, check_multiple

if TYPE_CHECKING:
    from salmonn_jax.models.whisper.encoder import WhisperEncoder


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WhisperConfig(EncoderConfig):
    """Whisper encoder (Radford et al. 2022), with the field names of transformers. The defaults are large-v2."""

    num_mel_bins: PositiveInt = Field(80, description="features per log-mel frame")
    d_model: PositiveInt = Field(1280, description="hidden size")
    encoder_layers: PositiveInt = Field(32, description="transformer layers")
    encoder_attention_heads: PositiveInt = Field(20, description="attention heads")
    encoder_ffn_dim: PositiveInt = Field(5120, description="hidden size of the feed-forward network")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        check_multiple("d_model", self.d_model, "encoder_attention_heads", self.encoder_attention_heads)
        return self

    @property
    def output_size(self) -> int:
        """Returns the size of an encoder frame."""
        return self.d_model

    @staticmethod
    def encoder_class() -> type[WhisperEncoder]:
        """Returns the module of the encoder."""
        from salmonn_jax.models.whisper.encoder import WhisperEncoder

        return WhisperEncoder
