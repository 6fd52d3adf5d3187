"""`run.json` of an evaluation: the settings of its predictions, and what was run. It needs no JAX.

Predictions of other settings are never mixed: an evaluation with other settings is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path

RUN_FILE = "run.json"
FORMAT_VERSION = 1


def read_run(directory: Path) -> dict[str, Any]:
    """Returns the content of `run.json`; {} if the directory has none. Raises UserError if it cannot be read."""
    path = directory / RUN_FILE
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); choose another --output") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT_VERSION:
        raise UserError(
            f'{path} was not written by this version (no "format": {FORMAT_VERSION}); choose another --output'
        )
    for name, kind in (("settings", dict), ("sessions", list)):
        if not isinstance(run.get(name), kind):
            raise UserError(f"{path} is damaged: {name} is missing or of another type; choose another --output")
    return run


def check_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    """Checks that the evaluation in a directory, if there is one, has the same settings.

    Args:
      directory: output directory of an evaluation.
      settings: settings by name, as JSON values.

    Raises:
      UserError: a setting differs; the message names it and both values. Or the directory is that of a model.
    """
    run = read_run(directory)
    if not run:
        has_predictions = any(directory.glob("predictions*.jsonl"))
        if has_predictions:
            raise UserError(f"{directory} has predictions but no {RUN_FILE}; choose another --output")
        if (directory / "config.json").exists():
            raise UserError(f"{directory} is a model or run directory; choose another --output")
        return
    earlier = run["settings"]
    for name in sorted(set(earlier) | set(settings)):
        old, new = earlier.get(name), settings.get(name)
        if old != new:
            raise UserError(
                f"{directory} was made with {name}={json.dumps(old)}, not {json.dumps(new)}; choose another --output, "
                "or the earlier value"
            )


def write_run(
    directory: Path,
    *,
    settings: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    session: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Writes `run.json`. Sessions of earlier starts are kept.

    Args:
      directory: output directory of an evaluation.
      settings: settings on which every prediction depends.
      sources: data sets, with the hashes of their manifests and the rows that cannot be used.
      session: what this start runs on: mesh, processes, batch size, versions.
      counts: numbers of predictions; None while the evaluation is running.
    """
    sessions = read_run(directory).get("sessions", [])
    if not sessions or sessions[-1] != dict(session):
        sessions = [*sessions, dict(session)]
    content = {
        "format": FORMAT_VERSION,
        "settings": dict(settings),
        "sources": list(sources),
        "sessions": sessions,
        "counts": None if counts is None else dict(counts),
    }
    with atomic_write(directory / RUN_FILE) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
