"""Recipes `real_stage1` to `real_stage3`: the paper's three stages for small pretrained parts, given with --model.

`launch.quickstart --real` trains them with Whisper base and SmolLM2-135M on two CPU cores. Encoder and language model
stay frozen; the Q-Former, its norms and projection and the adapters are trained, as in the paper. A row of 256 tokens
fits about five examples. The learning rate of stage 1 is that of a new Q-Former of six million parameters. Stage 3 is
twelve steps with one story each, which the model of stage 2 tells (`launch.prepare self-stories`).
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import AdamW, DataConfig, Recipe, WarmupConstant, WarmupCosine
from salmonn_jax.configs.preset import Preset

# Speech of several languages, sounds, and music; weights in percent. Whole voices and recordings are held out.
STAGE1 = Recipe(
    data=DataConfig(
        corpus="utterances",
        data_dir=".cache/minicorpus",
        mixture={"numbers": 30, "telephone": 16, "prompts": 4, "dialogue": 15, "captions": 20, "sounds": 15},
        rows=4,
        clips=24,
        seq_len=256,
        max_answer_tokens=64,
        streams=4,
    ),
    optimizer=AdamW(weight_decay=0.05, clip_norm=1.0),
    lr_schedule=WarmupCosine(peak_lr=1e-3, init_lr=1e-5, end_lr=1e-4, warmup_steps=50),
    num_train_steps=1200,
    save_every=100,
    activation_dtype="float32",
    frozen_dtype="float32",
)
STAGE2 = dataclasses.replace(
    STAGE1,
    data=dataclasses.replace(
        STAGE1.data,
        mixture={
            "numbers": 25,
            "telephone": 15,
            "prompts": 5,
            "dialogue": 15,
            "captions": 15,
            "sounds": 10,
            "music": 10,
            "speech_over_sound": 5,
        },
    ),
    lr_schedule=WarmupCosine(peak_lr=3e-4, init_lr=1e-5, end_lr=1e-5, warmup_steps=20),
    num_train_steps=400,
)
STAGE3 = dataclasses.replace(
    STAGE1,
    data=DataConfig(
        corpus="files",
        data_dir="stories",
        mixture={"stories": 1},
        packing="pad",
        rows=1,
        clips=1,
        seq_len=512,
        max_answer_tokens=400,
        streams=1,
    ),
    lr_schedule=WarmupConstant(peak_lr=1e-4, warmup_steps=0),
    num_train_steps=12,
    save_every=12,
)

PRESETS = (Preset("real_stage1", STAGE1), Preset("real_stage2", STAGE2), Preset("real_stage3", STAGE3))
