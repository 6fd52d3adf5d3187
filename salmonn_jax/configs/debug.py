"""Preset `debug`: a tiny model on synthetic tones that compiles and trains in seconds. Tests use it."""

from __future__ import annotations

from salmonn_jax.config import (
    AudioConfig,
    BeatsConfig,
    DataConfig,
    LlamaConfig,
    LoraConfig,
    ModelConfig,
    QFormerConfig,
    Recipe,
    WarmupCosine,
    WhisperConfig,
)
from salmonn_jax.configs.preset import Preset

MODEL = ModelConfig(
    audio=AudioConfig(window_seconds=1.0),
    whisper=WhisperConfig(num_mel_bins=80, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32),
    beats=BeatsConfig(
        embed_dim=16,
        encoder_embed_dim=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_embed_dim=32,
        conv_pos=8,
        conv_pos_groups=2,
    ),
    qformer=QFormerConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
    llama=LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    ),
    lora=LoraConfig(rank=4, alpha=8.0),
)

RECIPE = Recipe(
    data=DataConfig(
        corpus="tones",
        data_dir=".cache/tones",
        mixture={"tones": 1.0, "words": 1.0},
        packing="pad",
        rows=16,
        clips=8,
        seq_len=64,
        max_answer_tokens=16,
    ),
    lr_schedule=WarmupCosine(peak_lr=3e-3, init_lr=1e-4, end_lr=1e-4, warmup_steps=2),
    num_train_steps=6,
    save_every=2,
    activation_dtype="float32",
    frozen_dtype="float32",
)

PRESETS = (Preset("debug", RECIPE, MODEL),)
