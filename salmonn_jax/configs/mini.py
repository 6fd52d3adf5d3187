"""Presets `mini_stage0` to `mini_stage3`: a SALMONN of about a million parameters for two CPU cores.

Training takes minutes and starts from random weights. Stage 0 therefore trains the language model on text, in place of
the pretrained one of the paper. Stage 1 trains all parameters, with an additional CTC loss on the audio tokens. Stages
2 and 3 are those of the paper: stage 2 trains the Q-Former and LoRA and freezes the rest, and stage 3 is twelve steps
of activation tuning on the source with the longest answers.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import (
    AdamW,
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
    audio=AudioConfig(window_seconds=4.0),
    whisper=WhisperConfig(
        num_mel_bins=80, d_model=64, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=128
    ),
    beats=BeatsConfig(
        embed_dim=48,
        encoder_embed_dim=48,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_embed_dim=96,
        conv_pos=32,
        conv_pos_groups=4,
    ),
    # A window of 240 ms is shorter than a spoken digit, and long enough to keep the number of audio tokens small.
    qformer=QFormerConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        second_per_window=0.24,
        second_stride=0.24,
        dropout=0.0,
    ),
    # Four layers with narrow feed-forward networks: the tasks need attention over sequences more than stored facts.
    llama=LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
    lora=LoraConfig(rank=16, alpha=32.0, dropout=0.0),
)

DATA = DataConfig(
    # Weights in percent. Of the 20 examples of a step, four are text-only (the source "reading").
    mixture={"numbers": 27.2, "prompts": 4.8, "sounds": 13.6, "music": 20.8, "speech_over_sound": 13.6, "reading": 20},
    packing="pad",
    rows=20,
    clips=16,
    seq_len=56,
    max_answer_tokens=24,
    max_transcript_tokens=20,
    streams=4,
    lookahead=10,
)

LR_SCHEDULE = WarmupCosine(peak_lr=1e-3, init_lr=1e-4, end_lr=1e-4, warmup_steps=30)

# Replaces the pretrained language model of the paper. The data is text-only, with words in place of audio tokens.
STAGE0 = Recipe(
    data=dataclasses.replace(DATA, mixture={"reading": 1.0}, rows=24, clips=0),
    optimizer=AdamW(b2=0.98, clip_norm=1.0),
    lr_schedule=dataclasses.replace(LR_SCHEDULE, peak_lr=1.5e-3, end_lr=3e-4),
    trainable=("llm",),
    num_train_steps=1500,
    save_every=500,
    activation_dtype="float32",
    frozen_dtype="float32",
)

STAGE1 = dataclasses.replace(
    STAGE0,
    data=DATA,
    lr_schedule=LR_SCHEDULE,
    trainable=(".*",),
    num_train_steps=1400,
    save_every=350,
    ctc_weight=0.5,
    ctc_blank=3,  # id of the filler token, which the corpus's tokenizer has as a separate piece
)

STAGE2 = dataclasses.replace(
    STAGE1,
    lr_schedule=dataclasses.replace(LR_SCHEDULE, peak_lr=5e-4, end_lr=1e-5),
    trainable=Recipe().trainable,
    num_train_steps=500,
    save_every=250,
    ctc_weight=0.0,
)

STAGE3 = dataclasses.replace(
    STAGE2,
    data=dataclasses.replace(DATA, mixture={"speech_over_sound": 1.0}, rows=8, clips=8),
    lr_schedule=dataclasses.replace(LR_SCHEDULE, peak_lr=2e-5, init_lr=2e-5, end_lr=2e-5, warmup_steps=0),
    num_train_steps=12,
    save_every=12,
)

PRESETS = tuple(
    Preset(f"mini_stage{number}", recipe, MODEL) for number, recipe in enumerate((STAGE0, STAGE1, STAGE2, STAGE3))
)
