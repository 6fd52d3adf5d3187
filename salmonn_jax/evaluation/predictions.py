"""Prediction records and the append-only JSON-lines files that store them.

`predict` writes these files; `tasks` and `report` read the records, any number of times. Each line has a key, which is
a hash of everything the answer depends on. A restarted evaluation therefore generates only the missing answers, and
never reuses an answer of other weights or other decoding settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self, get_args

from salmonn_jax.errors import RunError, UserError
from salmonn_jax.files import atomic_write, open_batches
from salmonn_jax.paths import Path, PathLike, as_path

MERGED_FILE = "predictions.jsonl"  # predictions of all processes, when the evaluation is finished

Condition = Literal["audio", "silence"]
FinishReason = Literal["stop", "length", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Answer of the model to one row of a data set under one condition. It is one line of a prediction file.

    Attributes:
      key: hash from `prediction_key`.
      id: id of the row, unique within its source and split.
      source: name of the data set.
      split: name of the split, such as "test" or "unheard".
      task: a name in `salmonn_jax.evaluation.tasks`.
      metric: generic metric that scores the row; "" for the metrics of the task.
      condition: "audio" if the model got the clip, "silence" if it got zeros instead of the clip.
      prompt: prompt that the model got, `<SpeechHere>` at the position of the clip.
      question: text that was inserted into the prompt template, or "".
      references: correct answers, at least one.
      transcript: words spoken in the clip, or "".
      language: language of the references, such as "en"; "" if unknown.
      choices: answers from which the model chooses; empty for an open question.
      group: properties of the row by which scores are grouped, such as {"speaker": "1089"}.
      prediction: answer of the model; "" if there was an error.
      finish_reason: "stop" if the model ended its answer, "length" if the answer was cut, "error" if there is none.
      error: one line that says why there is no answer, or "".
      num_tokens: number of generated tokens, the stop token included.
      score: score of the answer, as reported by the decoder.
      audio_seconds: length of the clip in seconds; 0 for a text-only row.
      too_long: what happens to clips longer than the encoder window (see `salmonn_jax.audio.windows`).
      windows: start and end in seconds of each encoder window that the model got; empty for a text-only row.

    Raises:
      ValueError: a field has the wrong type or an unknown value, there is no reference, or `error` does not go together
        with `finish_reason` and `prediction`.
    """

    key: str
    id: str
    source: str
    split: str
    task: str
    metric: str = ""
    condition: Condition
    prompt: str
    question: str = ""
    references: Sequence[str]
    transcript: str = ""
    language: str = ""
    choices: Sequence[str] = ()
    group: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prediction: str
    finish_reason: FinishReason
    error: str = ""
    num_tokens: int = 0
    score: float = 0.0
    audio_seconds: float
    too_long: str
    windows: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _CHECKS.get(field.name, _is_text)(value):
                raise ValueError(f"{field.name}={value!r}: must be of type {field.type}")
        for name, literal in (("condition", Condition), ("finish_reason", FinishReason)):
            if getattr(self, name) not in get_args(literal):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {get_args(literal)}")
        if not self.references:
            raise ValueError("references=[]: must have at least one text")
        if (self.finish_reason == "error") != bool(self.error) or (self.error and self.prediction):
            raise ValueError("finish_reason='error', an error and an empty prediction must go together")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_CHECKS: dict[str, Callable[[object], bool]] = {
    "references": _is_text_list,
    "choices": _is_text_list,
    "group": lambda value: isinstance(value, Mapping) and all(_is_text(x) for item in value.items() for x in item),
    "num_tokens": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "score": _is_number,
    "audio_seconds": _is_number,
    "windows": lambda value: isinstance(value, (list, tuple)),
}

# Fields of a prediction that come from the data set; the others come from the evaluation.
ROW_FIELDS = (
    *("id", "source", "split", "task", "metric", "prompt", "question", "references"),
    *("transcript", "language", "choices", "group"),
)


def prediction_key(
    row: Mapping[str, object], *, condition: Condition, audio_hash: str, settings: Mapping[str, object]
) -> str:
    """Returns the hex SHA-256 of everything that an answer and its score depend on.

    Args:
      row: the fields `ROW_FIELDS` of the prediction.
      condition: as in `Prediction`.
      audio_hash: hash of the content of the clip; "" for a text-only row.
      settings: everything else that changes the answer, as JSON values: model, decoding, reading of clips. The order of
        keys does not matter.

    Raises:
      ValueError: a field of the row is missing or unknown.
    """
    if set(row) != set(ROW_FIELDS):
        raise ValueError(f"{sorted(set(row) ^ set(ROW_FIELDS))}: missing or unknown fields of a row")
    key_fields = {"row": dict(row), "condition": condition, "audio": audio_hash, "settings": dict(settings)}
    canonical = json.dumps(key_fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def to_line(prediction: Prediction) -> bytes:
    """Returns a prediction as a line of JSON, with its newline."""
    return json.dumps(vars(prediction), ensure_ascii=False, allow_nan=False).encode() + b"\n"


class PredictionLog:
    """Append-only prediction files of one process, used as a context manager or closed with `close`.

    Opening creates a missing file. If a kill cut the last line short, opening removes that line from the file. Its key
    is then missing from `completed_keys()`, so the row is answered again.

    Args:
      path: the file to append to. In a bucket, numbered objects beside it (see `salmonn_jax.files.open_batches`).
      other_paths: prediction files of other processes. Their predictions count as completed.

    Raises:
      UserError: a complete line is not a prediction, or a file holds an answer twice.
    """

    def __init__(self, path: PathLike, other_paths: Iterable[Path] = ()) -> None:
        self.path = as_path(path)
        self._completed_keys: set[str] = set()
        keep_bytes = 0
        for file in dict.fromkeys((self.path, *other_paths)):
            if file == self.path and not file.exists():
                continue
            for _, end, prediction in _read_lines(file):
                if not prediction.error:
                    self._completed_keys.add(prediction.key)
                keep_bytes = end if file == self.path else keep_bytes
        self._file = open_batches(self.path, keep_bytes)

    def completed_keys(self) -> set[str]:
        """Returns a copy of the keys of all answers in this file and in the other files.

        A prediction with an error is not completed: it is tried again, and an answer takes its place.
        """
        return set(self._completed_keys)

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Appends lines, which are permanent afterwards (see `salmonn_jax.files.open_batches`).

        Raises:
          ValueError: this file or another one already holds an answer with one of these keys.
        """
        for prediction in predictions:
            if prediction.key in self._completed_keys:
                raise ValueError(f"the answer to {prediction.id!r} with key {prediction.key} is already completed")
            if not prediction.error:
                self._completed_keys.add(prediction.key)
        self._file.write_batch(b"".join(map(to_line, predictions)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type | None, exc_value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def read_predictions(path: PathLike) -> list[Prediction]:
    """Returns the predictions of a file in the order of its lines.

    An incomplete last line is ignored. The file is not changed.

    Raises:
      UserError: the file does not exist, a complete line is not a prediction, or the file holds an answer twice.
    """
    return list(iter_predictions(path))


def iter_predictions(path: PathLike) -> Iterator[Prediction]:
    """Yields the predictions of a file, one at a time. See `read_predictions`."""
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"no prediction file {path}; run the evaluation first")
    for _, _, prediction in _read_lines(path):
        yield prediction


def find_prediction_files(directory: Path) -> list[Path]:
    """Returns the prediction files in a directory: first the merged one, then those of processes."""
    return sorted(directory.glob("predictions*.jsonl"), key=lambda path: (path.name != MERGED_FILE, path.name))


def merge_predictions(directory: Path, expected: Mapping[str, str]) -> int:
    """Merges the prediction files of all processes into `predictions.jsonl`, sorted by key, and deletes the others.

    An answer takes the place of an error with the same key. Predictions that are not expected, such as those of rows
    that were removed from the manifest, are left out.

    Args:
      directory: output directory of an evaluation.
      expected: the id of each row by the key of its prediction.

    Returns:
      The number of predictions that were left out.

    Raises:
      UserError: a complete line is not a prediction.
      RunError: a prediction is missing, or there are two different answers with the same key.
    """
    files = find_prediction_files(directory)
    lines: dict[str, _Line] = {}
    unexpected = set()
    for number, file in enumerate(files):
        for start, end, prediction in _read_lines(file):
            if prediction.key not in expected:
                unexpected.add(prediction.key)
                continue
            line_hash = hashlib.sha256(to_line(prediction)).digest()
            line, earlier = _Line(number, start, end, line_hash, bool(prediction.error)), lines.get(prediction.key)
            if earlier and not earlier.is_error and not line.is_error and earlier.hash != line.hash:
                raise RunError(f"{directory} has two different answers to {prediction.id!r} with key {prediction.key}")
            if earlier is None or earlier.is_error:
                lines[prediction.key] = line
    missing = sorted(set(expected) - set(lines))
    if missing:
        raise RunError(
            f"{len(missing)} of {len(expected)} predictions are missing in {directory}, the first that of "
            f"{expected[missing[0]]!r}; run the same command again"
        )
    with contextlib.ExitStack() as stack, atomic_write(directory / MERGED_FILE) as unfinished:
        opened = [stack.enter_context(file.open("rb")) for file in files]
        with unfinished.open("wb") as merged:
            for key in sorted(lines):
                line = lines[key]
                opened[line.file].seek(line.start)
                merged.write(opened[line.file].read(line.end - line.start))
            merged.flush()
            os.fsync(merged.fileno())
    for file in files:
        if file.name != MERGED_FILE:
            file.unlink()
    return len(unexpected)


def prediction_path(directory: Path, process_index: int) -> Path:
    """Returns the path of the prediction file of one process."""
    return directory / f"predictions-{process_index}.jsonl"


class _Line(NamedTuple):
    """Place of a line in the files that are merged."""

    file: int
    start: int
    end: int
    hash: bytes
    is_error: bool


def _read_lines(path: Path) -> Iterator[tuple[int, int, Prediction]]:
    """Yields the predictions of a file, after the positions at which the line of each starts and ends.

    Every line is written together with its newline, so an incomplete last line comes from a write that a kill
    interrupted. It is left out.

    Raises:
      UserError: a complete line is not a prediction, or the file holds an answer twice.
    """
    line_of_key: dict[str, int] = {}
    end = 0
    with path.open("rb") as file:
        # A binary file is split at newlines only, and not at characters such as U+2028, which a text may hold.
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            start, end = end, end + len(line)
            try:
                prediction = Prediction(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}:{number} is not a prediction ({error}); delete that line") from None
            first_line = number if prediction.error else line_of_key.setdefault(prediction.key, number)
            if first_line != number:
                raise UserError(f"{path}:{number} repeats the prediction of line {first_line}; delete one of the two")
            yield start, end, prediction
