"""Registry of presets: named recipes, with the model they are made for, which the commands in `launch` look up by name.

`stage1` to `stage3` and `real_stage1` to `real_stage3` are recipes for any model. The other presets name their model,
so that a run can start from random weights, and a job can be planned before its checkpoints are converted.
"""

from __future__ import annotations

from salmonn_jax.configs import debug, mini, real, salmonn, stages
from salmonn_jax.configs.preset import Preset
from salmonn_jax.errors import unknown_name

PRESETS: dict[str, Preset] = {
    preset.name: preset for preset in (*stages.PRESETS, *debug.PRESETS, *mini.PRESETS, *real.PRESETS, *salmonn.PRESETS)
}


def get_preset(name: str) -> Preset:
    """Returns the preset called `name`. Raises UserError with the nearest name if there is none."""
    if name not in PRESETS:
        raise unknown_name("configuration", name, PRESETS)
    return PRESETS[name]
