"""Reading of YAML files: recipes of merges, stages of a report, gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from salmonn_jax.errors import UserError
from salmonn_jax.paths import Path


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping. Raises UserError if the file is missing or something else."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is not a YAML mapping; write KEY: VALUE lines, as the --help of the command shows")
    return dict(values)
