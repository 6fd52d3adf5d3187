"""Presets of SALMONN-13B v1 (Vicuna-13B v1.1) and SALMONN-7B v0 (Vicuna-7B v1.5), for the paper's three stages.

The recipes are those of `salmonn_jax.configs.stages`: 90,000 steps of AdamW, with a learning rate that rises to 3e-5
in 3,000 steps and decays to 1e-5. The authors report 32 GPUs, and their code uses 8 examples per GPU. A step here has
up to 384 examples, packed into 64 rows.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import LlamaConfig, ModelConfig
from salmonn_jax.configs.preset import Preset
from salmonn_jax.configs.stages import STAGE1, STAGE3

MODEL_13B = ModelConfig(llama=LlamaConfig(), pad_classes=1)
MODEL_7B = ModelConfig(
    llama=LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=11_008,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    ),
    pad_classes=1,
)


# Thousands of examples in each source, from the paper (table 1 and section 4): sources are sampled by their size.
STAGE1_MIXTURE = {"librispeech": 280.0, "gigaspeech": 680.0, "wavcaps": 370.0, "audiocaps": 48.0, "clotho": 4.0}
STAGE2_MIXTURE = {
    "librispeech": 280.0,
    "gigaspeech": 200.0,
    "covost2": 290.0,
    "audiocaps": 48.0,
    "clotho": 4.0,
    "librispeech_phones": 280.0,
    "iemocap": 4.0,
    "musiccaps": 3.0,
    "librimix": 64.0,
    "voxceleb1": 520.0,
    "librispeech_gender": 28.0,
    "librispeech_qa": 280.0,
    "wavcaps_qa": 270.0,
    "audiocaps_qa": 48.0,
    "millionsong_qa": 48.0,
    "musicnet_qa": 0.4,
}


def _presets(size: str, model: ModelConfig) -> tuple[Preset, ...]:
    # 64 rows give one row to each of 64 chips. A row fits about six examples; shorter rows waste more tokens on padding
    # (`python -m benchmarks.packing`).
    data = dataclasses.replace(STAGE1.data, mixture=STAGE1_MIXTURE, rows=64, clips=384, seq_len=1056, streams=64)
    stage1 = dataclasses.replace(STAGE1, data=data, remat_policy="full")
    stage2 = dataclasses.replace(stage1, data=dataclasses.replace(data, mixture=STAGE2_MIXTURE))
    stage3_data = dataclasses.replace(STAGE3.data, mixture={"stories": 1.0})
    stage3 = dataclasses.replace(STAGE3, data=stage3_data, remat_policy="full")
    return tuple(
        Preset(f"salmonn_{size}_stage{number}", recipe, model)
        for number, recipe in enumerate((stage1, stage2, stage3), start=1)
    )


PRESETS = (*_presets("7b", MODEL_7B), *_presets("13b", MODEL_13B))
