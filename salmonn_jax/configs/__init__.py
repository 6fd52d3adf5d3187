"""Registry of named run configurations, which the commands in `launch` look up by name."""

from __future__ import annotations

from salmonn_jax.config import RunConfig
from salmonn_jax.configs import debug, mini, salmonn
from salmonn_jax.errors import unknown_name

CONFIGS: dict[str, RunConfig] = {config.name: config for config in (*debug.RUNS, *mini.RUNS, *salmonn.RUNS)}


def get_config(name: str) -> RunConfig:
    """Returns the configuration called `name`. Raises UserError with the nearest name if there is none."""
    if name not in CONFIGS:
        raise unknown_name("configuration", name, CONFIGS)
    return CONFIGS[name]
