"""What the model answered, one line per clip: made once, scored any number of times.

A prediction file only grows. Each line has a key made of everything the answer depends on, so an evaluation that was
killed asks only for the clips still missing, and an answer of other weights or settings is never taken for this one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Literal, Self, get_args

import numpy as np

from salmonn_jax.errors import UserError

Condition = Literal["audio", "silence"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer of the model.

    Attributes:
      key: what `prediction_key` gives for this question.
      id: the example's id, unique within its source.
      task: a name from `salmonn_jax.evaluation.tasks.TASKS`.
      source: the data set the example comes from.
      split: the part of the data set, such as "test" or "unheard".
      condition: "audio" for an answer to the clip; "silence" for an answer to the same prompt with silence as its clip.
      prompt: what the user said.
      reference: the right answer.
      prediction: the model's answer.
      finish_reason: why the model stopped, as the decoder names it.
      audio_seconds: length of the example's clip; 0 without one.

    Raises:
      ValueError: a field of a wrong type, or a `condition` that is neither of the two.
    """

    key: str
    id: str
    task: str
    source: str
    split: str
    condition: Condition
    prompt: str
    reference: str
    prediction: str
    finish_reason: str
    audio_seconds: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float) if field.name == "audio_seconds" else str):
                raise ValueError(f"{field.name} must not be {value!r}")
        if self.condition not in get_args(Condition):
            raise ValueError(f"condition must be one of {get_args(Condition)}, not {self.condition!r}")


def prediction_key(
    *,
    id: str,
    task: str,
    source: str,
    split: str,
    condition: Condition,
    prompt: str,
    reference: str,
    audio: np.ndarray | None,
    generation_config: Mapping[str, object],
    weights_fingerprint: str,
) -> str:
    """Names one question to one model: the hex SHA-256 of everything its answer and its score depend on.

    Args:
      id, task, source, split, condition, prompt, reference: as in `Prediction`.
      audio: the example's clip, int16[samples]; None for a text-only example.
      decode: the decoding settings, plain JSON values; their order does not matter.
      weights: fingerprint of the weights.

    Raises:
      ValueError: `audio` is not int16.
    """
    if audio is not None and audio.dtype != np.int16:
        raise ValueError(f"audio must be int16, not {audio.dtype}")
    question = {
        "row": [source, split, task, id, prompt, reference],
        "condition": condition,
        "audio": None if audio is None else hashlib.sha256(audio.astype("<i2").tobytes()).hexdigest(),
        "generation_config": dict(generation_config),
        "weights_fingerprint": weights_fingerprint,
    }
    canonical = json.dumps(question, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class PredictionLog:
    """An append-only file of predictions, to be closed or used in a `with` statement.

    Opening it creates a missing file. A last line that a kill cut short is dropped from the file; its clip is then not
    among `done()` and gets answered again.

    Args:
      path: the file.
      others: files of other processes, whose predictions are done too.

    Raises:
      UserError: a finished line that is not a prediction, or a prediction that is there twice.
    """

    def __init__(self, path: str | os.PathLike[str], other_paths: Iterable[pathlib.Path] = ()) -> None:
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._file.seek(0)
            finished = _complete_lines(self._file.read())
            self._completed_keys = {prediction.key for prediction in _parse(self.path, finished)}
            self._file.truncate(len(finished))
            self._completed_keys |= {prediction.key for other in other_paths for prediction in read_predictions(other)}
        except BaseException:
            self._file.close()
            raise

    def completed_keys(self) -> set[str]:
        """The keys of the predictions in the file and the others."""
        return set(self._completed_keys)

    def append(self, prediction: Prediction) -> None:
        """Writes one line and hands it to the operating system.

        Raises:
          ValueError: a prediction with this key is in the file already.
        """
        if prediction.key in self._completed_keys:
            raise ValueError(f"the prediction {prediction.key} of {prediction.id!r} is in {self.path} already")
        line = json.dumps(dataclasses.asdict(prediction), ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._completed_keys.add(prediction.key)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """The predictions in a file, in its order; an unfinished last line is left out and the file left as it is.

    Raises:
      UserError: no such file, a finished line that is not a prediction, or a prediction that is there twice.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there is no prediction file {path}; run the evaluation first")
    return list(_parse(path, _complete_lines(path.read_bytes())))


def find_prediction_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The prediction files in a directory, one for each process that made some."""
    return sorted(directory.glob("predictions*.jsonl"))


def prediction_path(directory: pathlib.Path, process_index: int) -> pathlib.Path:
    """The file into which a process writes."""
    return directory / (f"predictions-{process_index}.jsonl" if process_index else "predictions.jsonl")


def _complete_lines(content: bytes) -> bytes:
    """The part of a file up to its last line end: a line is written with its end, so the rest was cut by a kill."""
    return content[: content.rfind(b"\n") + 1]


def _parse(path: pathlib.Path, content: bytes) -> Iterator[Prediction]:
    seen: dict[str, int] = {}
    # As bytes, which break at line ends only: a text may hold characters such as U+2028, where a str breaks too.
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            prediction = Prediction(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number} is not a prediction ({error}); delete that line") from None
        first = seen.setdefault(prediction.key, number)
        if first != number:
            raise UserError(f"{path}:{number} repeats the prediction of line {first}; delete one of the two")
        yield prediction
