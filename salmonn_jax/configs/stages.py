"""Recipes `stage1`, `stage2` and `stage3`: the paper's three stages for any model, given with --model.

The optimiser, the learning rate and the trained modules are those of the original's `configs/config.yaml`. The batch is
that of one device there: 8 rows, which `data.rows`, `data.clips` and `data.streams` scale. The mixture is the user's.
Stage 3 is the paper's activation tuning: 12 steps with one story each.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import DataConfig, Recipe, WarmupCosine
from salmonn_jax.configs.preset import Preset

# A row of 512 tokens fits about three examples with 88 audio tokens each.
STAGE1 = Recipe(data=DataConfig(corpus="files", data_dir="data", rows=8, clips=24, seq_len=512))
STAGE2 = STAGE1
STAGE3 = dataclasses.replace(
    STAGE1,
    data=dataclasses.replace(
        STAGE1.data, packing="pad", rows=1, clips=1, seq_len=1024, max_answer_tokens=900, streams=1
    ),
    lr_schedule=WarmupCosine(warmup_steps=0, end_lr=3e-5),
    num_train_steps=12,
    save_every=12,
)

PRESETS = (Preset("stage1", STAGE1), Preset("stage2", STAGE2), Preset("stage3", STAGE3))
