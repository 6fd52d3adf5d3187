"""All rows of an evaluation, checked before the first prediction. `launch.evaluate` reads them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.evaluation.sources import RowSource, find_missing
from data_pipelines.examples import BadExample, Example
from data_pipelines.sources.manifest_entry import AudioSpan
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.errors import AudioError, UserError
from salmonn_jax.prompts import add_audio_placeholder

_READER_THREADS = 32  # they wait for the storage most of the time


class NamedSource(NamedTuple):
    """Data set to evaluate."""

    name: str
    split: str
    location: str
    rows: RowSource


class RejectedRow(NamedTuple):
    """Row that cannot be used, such as a line that is not JSON. There is no prediction for it."""

    source: NamedSource
    place: str
    reason: str


class EvaluationRows:
    """Random-access sequence of all usable rows of the data sets to evaluate.

    A row is given by its index. Texts and samples are read when they are asked for; only two integers per row are kept.

    Args:
      sources: the data sets.
      prompt_templates: templates for rows without their own prompt.
      check_task: called with the task and the metric of rows. Raises UserError if they are unknown.
      rewrite: called with each row, without its clip, and whether it has one; returns the row that is asked in its
        place. It may raise BadExample for a row that cannot be used.

    Attributes:
      rejected: rows that cannot be used.
      tasks: task, metric and language of the other rows, each once.

    Raises:
      UserError: a task or metric is unknown, a task has no prompt template, two rows have the same id or are the same,
        or there are rows but none can be used.
    """

    def __init__(
        self,
        sources: Sequence[NamedSource],
        prompt_templates: PromptTemplates,
        check_task: Callable[[str, str], object],
        rewrite: Callable[[Example, bool], Example] = lambda example, has_audio: example,
    ):
        self.sources, self._prompt_templates, self._check_task = list(sources), prompt_templates, check_task
        self._rewrite = rewrite
        self.rejected: list[RejectedRow] = []
        self.tasks: set[tuple[str, str, str]] = set()
        self._checked_tasks: set[tuple[str, str]] = set()
        self._digests = [hashlib.sha256() for _ in self.sources]
        usable: list[tuple[int, int]] = []
        seen: dict[tuple[str, str, str], tuple[int, int]] = {}
        for i, source in enumerate(self.sources):
            for j in range(len(source.rows)):
                try:
                    example, has_audio = self._read_texts(source, j)
                    self._check(example, has_audio, i, j)
                except BadExample as error:
                    place = source.rows.describe(j)
                    reason = f"{error.reason}: {error.detail.removeprefix(f'{place}: ')}"
                    self.rejected.append(RejectedRow(source, place, reason))
                    continue
                self._digests[i].update(_to_json(example, source.rows.spans(j)))
                self._check_unique(example, i, j, seen)
                self.tasks.add((example.task, example.metric, example.language))
                usable.append((i, j))
        if self.rejected and not usable:
            first = self.rejected[0]
            raise UserError(
                f"none of the {len(self.rejected)} rows can be used; the first is {first.place}: {first.reason}"
            )
        self._positions = np.array(usable, np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._positions)

    def select(
        self, indices: Sequence[int], rewrite: Callable[[Example, bool], Example] | None = None
    ) -> EvaluationRows:
        """Returns the rows with these indices, without checking them again. None of them is rejected.

        Args:
          indices: indices of rows.
          rewrite: as in the constructor; None keeps that of these rows.
        """
        selected = copy.copy(self)
        selected.rejected = []
        selected._positions = self._positions[np.asarray(indices, int)]
        selected._rewrite = rewrite or self._rewrite
        return selected

    def fields(self, index: int) -> dict[str, Any]:
        """Returns the fields `ROW_FIELDS` of a prediction (see `salmonn_jax.evaluation.predictions`)."""
        source, position = self._source(index)
        example, has_audio = self._read_texts(source, position)
        return {
            "id": example.id,
            "source": source.name,
            "split": source.split,
            "task": example.task,
            "metric": example.metric,
            "prompt": self._prompt(example, has_audio),
            "question": example.question,
            "references": list(example.references or (example.answer,)),
            "transcript": example.transcript,
            "language": example.language,
            "choices": list(example.choices),
            "group": dict(example.group),
        }

    def has_audio(self, index: int) -> bool:
        """Returns whether a row has a clip."""
        source, position = self._source(index)
        return source.rows.read_texts(position)[1]

    def describe(self, index: int) -> str:
        """Returns the place of a row, for messages."""
        source, position = self._source(index)
        return source.rows.describe(position)

    def spans(self, index: int) -> Sequence[AudioSpan] | None:
        """Returns the parts of files that are the clip of a row; None if clips are not in files of their own."""
        source, position = self._source(index)
        return source.rows.spans(position)

    def hash_audio(self, index: int) -> str:
        """Returns a hash of the stored bytes of the clip of a row. Raises AudioError if they cannot be read."""
        source, position = self._source(index)
        with _as_audio_error():
            return source.rows.hash_audio(position)

    def read_audio(self, index: int) -> np.ndarray:
        """Decodes the clip of a row to int16[samples] at 16 kHz. Raises AudioError if it cannot be used."""
        source, position = self._source(index)
        with _as_audio_error():
            return source.rows.read_audio(position)

    def missing_files(self, shard: tuple[int, int]) -> tuple[int, str]:
        """Returns the number of audio files that do not exist among those of one share of the rows, and the first one.

        Args:
          shard: (process index, number of processes). Shares are contiguous.
        """
        files: dict[str, None] = {}
        for index in np.array_split(np.arange(len(self)), shard[1])[shard[0]]:
            source, position = self._source(index)
            files |= dict.fromkeys(span.path for span in source.rows.spans(position) or ())
        with concurrent.futures.ThreadPoolExecutor(_READER_THREADS) as pool:
            missing = list(filter(None, pool.map(find_missing, files)))
        return len(missing), missing[0] if missing else ""

    def describe_sources(self) -> list[dict[str, Any]]:
        """Returns the data sets as JSON values: name, split, location, number of rows, hash of their texts."""
        return [
            {
                "name": source.name,
                "split": source.split,
                "location": source.location,
                "rows": len(source.rows),
                "texts_sha256": digest.hexdigest(),
                "rejected": [f"{row.place}: {row.reason}" for row in self.rejected if row.source is source],
            }
            for source, digest in zip(self.sources, self._digests, strict=True)
        ]

    def _read_texts(self, source: NamedSource, position: int) -> tuple[Example, bool]:
        """Returns a row without its clip, and whether it has one. Raises BadExample if the row cannot be used."""
        example, has_audio = source.rows.read_texts(position)
        return self._rewrite(example, has_audio), has_audio

    def _source(self, index: int) -> tuple[NamedSource, int]:
        """Returns the data set of a row, and the index of the row in it."""
        source, position = self._positions[index]
        return self.sources[source], int(position)

    def _check(self, example: Example, has_audio: bool, source: int, position: int) -> None:
        """Checks task, metric and prompt of a row. Raises BadExample if only this row is wrong, and else UserError."""
        if (example.task, example.metric) not in self._checked_tasks:
            try:
                self._check_task(example.task, example.metric)
                if not example.prompt and example.task not in self._prompt_templates.by_task:
                    raise UserError(
                        f"the task {example.task!r} has no prompt in {self._prompt_templates.location}; give the rows "
                        "a prompt, or choose another file with --prompt-templates"
                    )
            except UserError as error:
                raise UserError(f"{self.sources[source].rows.describe(position)}: {error}") from None
            self._checked_tasks.add((example.task, example.metric))
        self._prompt(example, has_audio)

    def _prompt(self, example: Example, has_audio: bool) -> str:
        """Returns the prompt of a row. Raises BadExample if there is none, as for a task that needs a question."""
        prompt = example.prompt or self._prompt_templates.render(example.task, example.question, 0, has_audio=has_audio)
        try:
            return add_audio_placeholder(prompt, num_clips=int(has_audio))
        except UserError as error:
            raise BadExample("invalid", str(error)) from None

    def _check_unique(
        self, example: Example, source: int, position: int, seen: dict[tuple[str, str, str], tuple[int, int]]
    ) -> None:
        """Raises UserError if a row has the id of an earlier one, or neither has an id and they are the same."""
        name, split, _, rows = self.sources[source]
        keys = [(name, split, f"id {example.id}")]
        if _has_default_id(example.id, position):
            keys.append((name, split, _hash_row(example, rows.spans(position))))
        for key in keys:
            first = seen.setdefault(key, (source, position))
            if first != (source, position):
                places = f"{rows.describe(position)} and {self.sources[first[0]].rows.describe(first[1])}"
                what = f"have the same id {example.id!r}" if key[2].startswith("id ") else "are the same"
                raise UserError(f"{places} {what}; remove one of the two, or give each an id of its own")


@contextlib.contextmanager
def _as_audio_error() -> Iterator[None]:
    """Turns BadExample, which the library does not know, into AudioError."""
    try:
        yield
    except BadExample as error:
        raise AudioError(error.reason, error.detail) from None


def _has_default_id(id: str, position: int) -> bool:
    """Returns whether an id was made from the position of a row (see `manifest_entry`), because the row has none."""
    return id == str(position) or id.endswith(f"#{position}")


def _hash_row(example: Example, spans: Sequence[AudioSpan] | None) -> str:
    """Returns a hash of everything in a row but its id. Rows whose clips are not in files differ by their ids."""
    if spans is None:
        return f"id {example.id}"
    return hashlib.sha256(_to_json(dataclasses.replace(example, id=""), spans)).hexdigest()


def _to_json(example: Example, spans: Sequence[AudioSpan] | None) -> bytes:
    return json.dumps(dataclasses.asdict(example) | {"audio": spans}, sort_keys=True).encode() + b"\n"
