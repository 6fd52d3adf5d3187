"""SALMONN-13B v1 (Vicuna-13B v1.1) and SALMONN-7B v0 (Vicuna-7B v1.5), in the three stages of the paper.

The recipe is the original's `configs/config.yaml`: 90,000 steps of AdamW, 3e-5 after 3,000 steps of warm-up, to 1e-5.
The authors name 32 GPUs and 8 clips on each, hence 256 rows. Stage 3 is the paper's activation tuning: 12 steps on
one story each.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import DataConfig, LlamaConfig, ModelConfig, OptimizerConfig, RunConfig

MODEL_13B = ModelConfig(llama=LlamaConfig(), pad_classes=1)
MODEL_7B = ModelConfig(
    llama=LlamaConfig(width=4096, layers=32, heads=32, kv_heads=32, ffn=11_008, rms_epsilon=1e-5, context=4096),
    pad_classes=1,
)


def _stages(size: str, model: ModelConfig) -> tuple[RunConfig, ...]:
    data = DataConfig(corpus="", cache="", rows=256, clips=256, sequence=512, streams=64)
    stage1 = RunConfig(name=f"salmonn_{size}_stage1", model=model, data=data, remat="full")
    stage2 = dataclasses.replace(stage1, name=f"salmonn_{size}_stage2")
    stage3 = dataclasses.replace(
        stage1,
        name=f"salmonn_{size}_stage3",
        data=dataclasses.replace(data, rows=1, clips=1, sequence=1024, streams=1),
        optimizer=OptimizerConfig(warmup_steps=0, end=3e-5),
        steps=12,
        save_every=12,
    )
    return stage1, stage2, stage3


RUNS = (*_stages("7b", MODEL_7B), *_stages("13b", MODEL_13B))
