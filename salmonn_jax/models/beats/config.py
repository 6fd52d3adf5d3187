"""Configuration of BEATs. It imports no JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from salmonn_jax.config.encoder import EncoderConfig
from salmonn_jax.config.typed import STRICT, PositiveInt, check_multiple

if TYPE_CHECKING:
    from salmonn_jax.models.beats.encoder import Beats


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BeatsConfig(EncoderConfig):
    """BEATs encoder (Chen et al. 2022), with the original field names. The defaults are the iter3+ AS2M checkpoint."""

    num_mel_bins: PositiveInt = Field(128, description="features per filter-bank frame")
    input_patch_size: PositiveInt = Field(16, description="a patch covers this many frames and this many mel bins")
    embed_dim: PositiveInt = Field(512, description="size of a patch embedding")
    encoder_embed_dim: PositiveInt = Field(768, description="hidden size of the transformer")
    encoder_layers: PositiveInt = Field(12, description="transformer layers")
    encoder_attention_heads: PositiveInt = Field(12, description="attention heads")
    encoder_ffn_embed_dim: PositiveInt = Field(3072, description="hidden size of the feed-forward network")
    conv_pos: PositiveInt = Field(128, description="kernel size of the convolutional position embedding, in tokens")
    conv_pos_groups: PositiveInt = Field(16, description="groups of that convolution")
    num_buckets: PositiveInt = Field(320, description="buckets of the relative position bias")
    max_distance: PositiveInt = Field(
        800, description="in tokens; positions at this distance or farther share the last bucket"
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name in ("encoder_attention_heads", "conv_pos_groups"):
            check_multiple("encoder_embed_dim", self.encoder_embed_dim, name, getattr(self, name))
        check_multiple("num_mel_bins", self.num_mel_bins, "input_patch_size", self.input_patch_size)
        return self

    @property
    def output_size(self) -> int:
        """Returns the size of an encoder frame."""
        return self.encoder_embed_dim

    @staticmethod
    def encoder_class() -> type[Beats]:
        """Returns the module of the encoder."""
        from salmonn_jax.models.beats.encoder import Beats

        return Beats
