"""Rows and a model for tests of evaluations, which need no weights. As a program, it runs a process of an evaluation.

python -m tests.evaluation.stub OUTPUT NUM_ROWS BATCH_SIZE SECONDS_PER_BATCH
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from salmonn_jax import distributed
from salmonn_jax.config import GenerationConfig
from salmonn_jax.errors import AudioError, UserError
from salmonn_jax.evaluation.predict import PredictOptions
from salmonn_jax.evaluation.run import Evaluation, run_evaluation
from salmonn_jax.files import _SyncedFile

SETTINGS = {"generation_config.num_beams": 1, "model.fingerprint": "f00d"}


class StubRows:
    """Rows `row-0`, `row-1`, ... with clips made from their ids.

    Args:
      ids: numbers of the rows, in the order of the manifest.
      broken: reason of the AudioError for each row that cannot be read.
      num_prompts: number of different prompts, of different lengths.
      has_audio: whether rows have clips.
    """

    def __init__(
        self,
        ids: Sequence[int],
        broken: Mapping[int, str] = {},
        num_prompts: int = 3,
        has_audio: bool = True,
    ):
        self.ids, self.broken, self._num_prompts, self._has_audio = list(ids), dict(broken), num_prompts, has_audio

    def __len__(self) -> int:
        return len(self.ids)

    def fields(self, index: int) -> dict[str, Any]:
        number = self.ids[index]
        return {
            "id": f"row-{number}",
            "source": "stub",
            "split": "test",
            "task": "sound",
            "metric": "",
            "prompt": "What is this? " * (1 + number % self._num_prompts),
            "question": "",
            "references": [f"answer {number}"],
            "transcript": "",
            "language": "",
            "choices": [],
            "group": {},
        }

    def has_audio(self, index: int) -> bool:
        return self._has_audio

    def hash_audio(self, index: int) -> str:
        return hashlib.sha256(self._clip(self.ids[index]).tobytes()).hexdigest()

    def read_audio(self, index: int) -> np.ndarray:
        number = self.ids[index]
        if number in self.broken:
            raise AudioError(self.broken[number], f"clip {number} is {self.broken[number]}")
        return self._clip(number)

    def _clip(self, number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(-9000, 9000, 160).astype(np.int16)


class StubWindow(NamedTuple):
    start_seconds: float
    end_seconds: float


class StubAnswer(NamedTuple):
    text: str
    num_tokens: int = 3
    score: float = -1.5
    finish_reason: str = "stop"
    windows: tuple[StubWindow, ...] = (StubWindow(0.0, 0.01),)


class StubModel:
    """Answers with a hash of prompt and clip. Counts the answers."""

    seconds_per_batch = 0.0
    num_compilations = 2

    def max_batch_size(self, generation_config, num_prompt_tokens):
        return 8

    def __init__(self):
        self.num_answers, self.batch_sizes = 0, []

    def make_request(self, audio, prompt, *, max_new_tokens, too_long, name):
        if len(prompt) > 1000:
            raise UserError("1001 tokens are too many; shorten the prompt")
        return prompt, b"" if audio is None else audio[0].tobytes()

    def answer(self, requests, generation_config, *, batch_size):
        assert len(requests) <= batch_size
        time.sleep(self.seconds_per_batch)
        self.num_answers += len(requests)
        self.batch_sizes.append(len(requests))
        return [StubAnswer(self.text(prompt, audio)) for prompt, audio in requests]

    def text(self, prompt: str, audio: bytes) -> str:
        return hashlib.sha256(prompt.encode() + audio).hexdigest()[:8]


def stub_evaluation(rows: StubRows, batch_size: int | None = 4, max_failures: int = 10, **changes: Any) -> Evaluation:
    """Returns an evaluation of the rows, with `changes` of other fields."""
    options = PredictOptions(
        generation_config=GenerationConfig(num_beams=1),
        too_long="error",
        batch_size=batch_size,
        max_failures=max_failures,
    )
    fields = {
        "rows": rows,
        "conditions": ("audio",),
        "settings": SETTINGS,
        "sources": [{"name": "stub", "split": "test"}],
        "session": {"device": "none"},
        "options": options,
        "bucket": lambda prompt, has_audio: len(prompt),
    }
    return Evaluation(**(fields | changes))


def main() -> None:
    """Runs an evaluation whose writes take a while, so that a kill may meet one."""
    output, num_rows, batch_size, seconds = sys.argv[1:]
    distributed.initialize()

    def write_in_two_parts(file: _SyncedFile, data: bytes) -> None:
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            file._file.write(part)
            file._file.flush()
            time.sleep(float(seconds))

    _SyncedFile.write_batch = write_in_two_parts
    StubModel.seconds_per_batch = float(seconds)
    evaluation = stub_evaluation(StubRows(range(int(num_rows))), int(batch_size))
    print("finished" if run_evaluation(StubModel(), evaluation, pathlib.Path(output)) else "stopped", flush=True)


if __name__ == "__main__":
    main()
