"""Configurations of models, and recipes of their training, as frozen dataclasses whose fields have JSON types.

They can be compared, printed, stored with a checkpoint and read back. Named configurations are in
`salmonn_jax.configs`.
"""

from __future__ import annotations

from salmonn_jax.config.encoder import EncoderConfig
from salmonn_jax.config.generation import GenerationConfig
from salmonn_jax.config.model import (
    HOP_LENGTH,
    MUTABLE_MODEL_FIELDS,
    SAMPLE_RATE,
    AudioConfig,
    BeatsConfig,
    LlamaConfig,
    LoraConfig,
    ModelConfig,
    QFormerConfig,
    RopeScaling,
    WhisperConfig,
)
from salmonn_jax.config.optimizer import AdamW, Lion, WarmupConstant, WarmupCosine
from salmonn_jax.config.recipe import MUTABLE_DATA_FIELDS, MUTABLE_RECIPE_FIELDS, DataConfig, Recipe
from salmonn_jax.config.typed import (
    apply_overrides,
    describe_fields,
    field_paths,
    first_difference,
    from_dict,
    to_dict,
)

__all__ = [
    "HOP_LENGTH",
    "MUTABLE_DATA_FIELDS",
    "MUTABLE_MODEL_FIELDS",
    "MUTABLE_RECIPE_FIELDS",
    "SAMPLE_RATE",
    "AdamW",
    "AudioConfig",
    "BeatsConfig",
    "DataConfig",
    "EncoderConfig",
    "GenerationConfig",
    "Lion",
    "LlamaConfig",
    "LoraConfig",
    "ModelConfig",
    "QFormerConfig",
    "Recipe",
    "RopeScaling",
    "WarmupConstant",
    "WarmupCosine",
    "WhisperConfig",
    "apply_overrides",
    "describe_fields",
    "field_paths",
    "first_difference",
    "from_dict",
    "to_dict",
]
