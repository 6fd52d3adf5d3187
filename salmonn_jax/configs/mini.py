"""`mini`: a SALMONN of about a million parameters that learns to hear on two CPU cores, in minutes.

All its parts start from random weights, so stage 1 trains everything, with a CTC loss on the audio tokens to help;
stages 2 and 3 are the paper's: Q-Former and LoRA on a frozen rest, and a few steps of activation tuning.
"""

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
    audio=AudioConfig(window_seconds=4.0),
    whisper=WhisperConfig(mels=80, width=96, layers=2, heads=2, ffn=192),
    beats=BeatsConfig(patch_width=64, width=64, layers=2, heads=2, ffn=128, conv_positions=32, conv_groups=4),
    qformer=QFormerConfig(width=96, layers=2, heads=2, ffn=192, window_seconds=0.16, stride_seconds=0.16, dropout=0.0),
    llama=LlamaConfig(vocabulary=512, width=128, layers=2, heads=2, kv_heads=2, ffn=256, context=256),
    lora=LoraConfig(rank=16, alpha=32.0, dropout=0.0),
    activation_dtype="float32",
    frozen_dtype="float32",
)

DATA = DataConfig(
    mixture={"numbers": 0.4, "prompts": 0.1, "sounds": 0.17, "music": 0.18, "speech_over_sound": 0.15},
    text_mixture={"reading": 1.0},
    rows=32,
    clips=16,
    sequence=96,
    answer=40,
    transcript=24,
)

STAGE1 = RunConfig(
    name="mini_stage1",
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(peak=1.5e-3, start=1e-5, end=1e-4, warmup_steps=100, clip_norm=1.0),
    trainable=(".*",),
    steps=1500,
    save_every=500,
    ctc_weight=0.5,
)

RUNS = (STAGE1,)
