"""Configurations of models and training runs, as frozen dataclasses whose fields have JSON types.

They can be compared, printed, stored with a checkpoint and read back. Named configurations are in
`salmonn_jax.configs`.
"""

from __future__ import annotations

from salmonn_jax.config.model import (
    HOP_LENGTH,
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
from salmonn_jax.config.recipe import (
    MUTABLE_DATA_FIELDS,
    MUTABLE_RUN_FIELDS,
    DataConfig,
    OptimizerConfig,
    RunConfig,
)
from salmonn_jax.config.typed import (
    apply_overrides,
    describe_fields,
    first_difference,
    from_dict,
    to_dict,
)

__all__ = [
    "HOP_LENGTH",
    "MUTABLE_DATA_FIELDS",
    "MUTABLE_RUN_FIELDS",
    "SAMPLE_RATE",
    "AudioConfig",
    "BeatsConfig",
    "DataConfig",
    "LlamaConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "QFormerConfig",
    "RopeScaling",
    "RunConfig",
    "WhisperConfig",
    "apply_overrides",
    "describe_fields",
    "first_difference",
    "from_dict",
    "to_dict",
]
