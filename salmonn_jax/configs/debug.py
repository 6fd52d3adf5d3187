"""`debug`: the real program at a size that compiles and trains in seconds, on made-up tones. For tests."""

from __future__ import annotations

from salmonn_jax.config import (
    AudioConfig,
    BeatsConfig,
    DataConfig,
    LlamaConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    QFormerConfig,
    RunConfig,
    WhisperConfig,
)

MODEL = ModelConfig(
    audio=AudioConfig(window_seconds=1.0),
    whisper=WhisperConfig(mels=80, width=16, layers=2, heads=2, ffn=32),
    beats=BeatsConfig(patch_width=16, width=16, layers=2, heads=2, ffn=32, conv_positions=8, conv_groups=2),
    qformer=QFormerConfig(width=16, layers=2, heads=2, ffn=32),
    llama=LlamaConfig(vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, ffn=64, context=64),
    lora=LoraConfig(rank=4, alpha=8.0),
    activation_dtype="float32",
    frozen_dtype="float32",
)

RUN = RunConfig(
    name="debug",
    model=MODEL,
    data=DataConfig(
        corpus="tones",
        cache=".cache/tones",
        mixture={"tones": 1.0, "words": 1.0},
        packing="pad",
        rows=16,
        clips=8,
        sequence=64,
        answer=16,
    ),
    optimizer=OptimizerConfig(peak=3e-3, start=1e-4, end=1e-4, warmup_steps=2),
    steps=6,
    save_every=2,
)

RUNS = (RUN,)
