"""Manifests of generated answers: the kept ones as training data, the rejected ones with their reasons."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import soundfile

from data_pipelines.evaluation.rows import EvaluationRows
from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry, entry_to_json
from salmonn_jax import paths
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path, as_path
from salmonn_jax.self_generated import Rejection


def write_answers(
    output: Path,
    rows: EvaluationRows,
    kept: Sequence[Prediction],
    rejected: Sequence[tuple[Prediction, Rejection]],
) -> None:
    """Writes `output`, a manifest of the kept answers, and beside it `STEM.rejected.jsonl` with the rejected ones.

    Clips are named by their paths. Clips that are not in files of their own, such as those of a prepared data set, go
    to files in the directory `STEM.clips` beside the manifest.

    Args:
      output: path of the manifest, `STEM.jsonl`.
      rows: rows whose answers these are.
      kept: answers that become examples.
      rejected: the other answers, and the rule that each breaks.
    """
    index_of = {(row["source"], row["split"], row["id"]): i for i in range(len(rows)) for row in (rows.fields(i),)}
    lines = []
    for answer in kept:
        index = index_of[answer.source, answer.split, answer.id]
        entry = ManifestEntry(
            id=_id(answer),
            audio=_spans(output, rows, index),
            answer=answer.prediction.strip(),
            task=answer.task,
            prompt=answer.prompt,
            transcript=answer.transcript,
            group=answer.group,
        )
        lines.append(entry_to_json(entry))
    reasons = [
        {"id": _id(answer), **rejection._asdict(), "prompt": answer.prompt, "answer": answer.prediction}
        for answer, rejection in rejected
    ]
    _write_lines(rejected_path(output), reasons)
    _write_lines(output, lines)


def rejected_path(output: Path) -> Path:
    """Returns the path of the rejected answers of a manifest."""
    return output.with_name(f"{output.stem}.rejected.jsonl")


def clips_directory(output: Path) -> Path:
    """Returns the directory of the clips of a manifest whose clips are not in files of their own."""
    return output.with_name(f"{output.stem}.clips")


def _id(answer: Prediction) -> str:
    return f"{answer.source}/{answer.split}/{answer.id}"


def _spans(output: Path, rows: EvaluationRows, index: int) -> tuple[AudioSpan, ...]:
    """Returns the clip of a row as parts of files, and writes its file if it has none."""
    if not rows.has_audio(index):
        return ()
    spans = rows.spans(index)
    if spans is not None:
        return tuple(span._replace(path=_absolute(span.path)) for span in spans)
    samples = rows.read_audio(index)
    directory = clips_directory(output)
    name = f"{hashlib.sha256(samples.astype('<i2').tobytes()).hexdigest()[:16]}.flac"
    if not (directory / name).exists():
        with atomic_write(directory / name) as unfinished:
            unfinished.write_bytes(_flac(samples))
    return (AudioSpan(f"{directory.name}/{name}"),)


def _absolute(path: str) -> str:
    return path if "://" in path else str(paths.absolute(as_path(path)))


def _flac(samples: np.ndarray) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as unfinished:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        unfinished.write_text(text, "utf-8")
