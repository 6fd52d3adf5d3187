"""Named configurations of runs."""

from __future__ import annotations

from salmonn_jax.config import RunConfig
from salmonn_jax.configs import debug, mini, salmonn
from salmonn_jax.errors import unknown_name

CONFIGS: dict[str, RunConfig] = {config.name: config for config in (*debug.RUNS, *mini.RUNS, *salmonn.RUNS)}


def get_config(name: str) -> RunConfig:
    """The configuration of that name. Raises UserError with the nearest name for an unknown one."""
    if name not in CONFIGS:
        raise unknown_name("configuration", name, CONFIGS)
    return CONFIGS[name]
