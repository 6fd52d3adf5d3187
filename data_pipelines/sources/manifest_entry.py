"""Manifest entries, which are examples whose audio is not read yet, and their conversion from and to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipelines.examples import TEXT_FIELDS, BadExample

GAP_SAMPLES = 1600  # zero samples between the files of one clip, as in the original (`expand_wav`)


class AudioSpan(NamedTuple):
    """An audio file, or the part of it from `start` to `end` in seconds.

    `path` is a local path or any URL that fsspec opens. `end` is None for the end of the file.
    """

    path: str
    start: float = 0.0
    end: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One example of a manifest. The text fields are those of `data_pipelines.examples.Example`.

    Attributes:
      id: identifier, unique within the manifest.
      audio: spans that are joined to one clip, with `GAP_SAMPLES` zero samples in between; empty for a text-only
        example.
      answer: text that the model should generate.
      task: name of the task. It selects the prompt templates and the metric.
      prompt: text of the user; "" for a prompt template of the task.
      question: text that replaces `{}` in the prompt template.
      transcript: words spoken in the clip, if known.
    """

    id: str
    audio: tuple[AudioSpan, ...] = ()
    answer: str
    task: str = "asr"
    prompt: str = ""
    question: str = ""
    transcript: str = ""


def entry_from_json(line: Any, number: int) -> ManifestEntry:
    """Converts a parsed line of a `.jsonl` manifest to an entry.

        {"id": "1", "audio": "a.flac", "answer": "hello", "task": "asr"}

    `audio` is a path, an object {"path", "start", "end"} for a part of a file, or a list of these. Text-only examples
    have no `audio`.

    Args:
      line: the parsed line.
      number: number of the line, the id of an entry without `id`.

    Raises:
      BadExample: a field is missing, unknown or of the wrong type.
    """
    if not isinstance(line, Mapping):
        raise BadExample("invalid", "the line is not a JSON object")
    unknown = set(line) - {*TEXT_FIELDS, "audio"}
    if unknown:
        known = ", ".join(("audio", *TEXT_FIELDS))
        raise BadExample("invalid", f"unknown field {sorted(unknown)[0]!r}; the known fields are: {known}")
    texts = {name: line[name] for name in TEXT_FIELDS if line.get(name) is not None}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadExample("invalid", f"{name}={text!r}: must be a string")
    if not texts.get("answer", "").strip():
        raise BadExample("invalid", "the answer is missing or empty")
    return ManifestEntry(**{"id": str(number), **texts}, audio=_parse_spans(line.get("audio")))


def entry_from_annotation(line: Any, number: int) -> ManifestEntry:
    """Converts an annotation of the original to an entry.

    An annotation has the fields `path` and `text`, and optionally `task`, `Q` and `expand_wav`.

    Args:
      line: the parsed annotation.
      number: index of the annotation. The id is the path, as in the original, and this number, because several tasks
        may share a path.

    Raises:
      BadExample: `path` or `text` is missing, or a field is of the wrong type.
    """
    if not isinstance(line, Mapping) or not all(isinstance(line.get(name), str) for name in ("path", "text")):
        raise BadExample("invalid", "path and text must be strings")
    if not line["text"].strip():
        raise BadExample("invalid", "the text is empty")
    extra_paths = line.get("expand_wav") or []
    extra_paths = [extra_paths] if isinstance(extra_paths, str) else extra_paths
    task, question = line.get("task") or "asr", line.get("Q") or ""
    if not isinstance(task, str) or not isinstance(question, str) or not isinstance(extra_paths, list):
        raise BadExample("invalid", "task and Q must be strings, expand_wav a list of paths")
    return ManifestEntry(
        id=f"{line['path']}#{number}",
        audio=_parse_spans([line["path"], *extra_paths]),
        answer=line["text"],
        task=task,
        question=question,
        transcript=line["text"] if task == "asr" else "",
    )


def entry_to_json(entry: ManifestEntry) -> dict[str, Any]:
    """Converts an entry to the JSON object that `entry_from_json` reads."""
    spans = [
        p.path if p == AudioSpan(p.path) else {"path": p.path, "start": p.start, "end": p.end} for p in entry.audio
    ]
    line: dict[str, Any] = {"id": entry.id}
    if spans:
        line["audio"] = spans if len(spans) > 1 else spans[0]
    return line | {name: getattr(entry, name) for name in TEXT_FIELDS[1:] if getattr(entry, name)}


def _parse_spans(audio: Any) -> tuple[AudioSpan, ...]:
    if audio is None:
        return ()
    return tuple(_parse_span(span) for span in (audio if isinstance(audio, list) else [audio]))


def _parse_span(span: Any) -> AudioSpan:
    if isinstance(span, str) and span:
        return AudioSpan(span)
    if not isinstance(span, Mapping) or set(span) - {"path", "start", "end"} or not isinstance(span.get("path"), str):
        raise BadExample("invalid", f"audio={span!r}: must be a path, or an object with path, start and end")
    start, end = span.get("start") or 0.0, span.get("end")
    if not isinstance(start, (int, float)) or not isinstance(end, (int, float, type(None))):
        raise BadExample("invalid", f"start={start!r}, end={end!r}: must be numbers of seconds")
    if start < 0 or (end is not None and end <= start):
        raise BadExample("invalid", f"start={start}, end={end}: must be 0 <= start < end")
    return AudioSpan(span["path"], float(start), None if end is None else float(end))
