"""One line of a manifest: an example whose audio still lies in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipelines.examples import TEXT_FIELDS, BadExample

GAP_SAMPLES = 1600  # zero samples between the files of one clip, as the original joins them (`expand_wav`)


class AudioSpan(NamedTuple):
    """A file, or the part of it between two times in seconds. `path` is a local path or any URL that fsspec opens."""

    path: str
    start: float = 0.0
    end: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """What a manifest says of one example.

    Attributes:
      id: unique within the manifest.
      audio: pieces that make one clip, joined with `GAP` zero samples between them; none for a text-only example.
      answer: the text to produce.
      task: names the wordings it is asked in, and the metric that scores the answer.
      prompt: what the user says; "" for one of the task's wordings.
      question: goes into the wording where it has `{}`.
      transcript: the words spoken in the clip, where they are known.
    """

    id: str
    audio: tuple[AudioSpan, ...] = ()
    answer: str
    task: str = "asr"
    prompt: str = ""
    question: str = ""
    transcript: str = ""


def entry_from_json(line: Any, number: int) -> ManifestEntry:
    """An entry from a line of our manifest.

        {"id": "1", "audio": "a.flac", "answer": "hello", "task": "asr"}

    `audio` is a path, {"path", "start", "end"} for a part of a file, or a list of these; left out for text alone.
    Without `id` the number of the line is it.

    Raises:
      BadExample: a field is missing, unknown, or not what it must be.
    """
    if not isinstance(line, Mapping):
        raise BadExample("wrong line", "it is not a JSON object")
    unknown = set(line) - {*TEXT_FIELDS, "audio"}
    if unknown:
        known = ", ".join(("audio", *TEXT_FIELDS))
        raise BadExample("wrong line", f"unknown field {sorted(unknown)[0]!r}; the known fields are: {known}")
    texts = {name: line[name] for name in TEXT_FIELDS if line.get(name) is not None}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadExample("wrong line", f"{name} must be a string, not {text!r}")
    if not texts.get("answer", "").strip():
        raise BadExample("wrong line", "it has no answer")
    return ManifestEntry(**{"id": str(number), **texts}, audio=_parse_spans(line.get("audio")))


def entry_from_annotation(line: Any, number: int) -> ManifestEntry:
    """An entry of the original's annotation JSON: `path`, `text`, and perhaps `task`, `Q`, `expand_wav`.

    Its id is the path, as in the original, and the number, for several tasks may share a path.

    Raises:
      BadExample: `path` or `text` is missing, or a field is not what it must be.
    """
    if not isinstance(line, Mapping) or not all(isinstance(line.get(name), str) for name in ("path", "text")):
        raise BadExample("wrong line", "path and text must be strings")
    if not line["text"].strip():
        raise BadExample("wrong line", "it has no text")
    more = line.get("expand_wav") or []
    more = [more] if isinstance(more, str) else more
    task, question = line.get("task") or "asr", line.get("Q") or ""
    if not isinstance(task, str) or not isinstance(question, str) or not isinstance(more, list):
        raise BadExample("wrong line", "task and Q must be strings, expand_wav a list of paths")
    return ManifestEntry(
        id=f"{line['path']}#{number}",
        audio=_parse_spans([line["path"], *more]),
        answer=line["text"],
        task=task,
        question=question,
        transcript=line["text"] if task == "asr" else "",
    )


def entry_to_json(entry: ManifestEntry) -> dict[str, Any]:
    """The reverse of `from_json`."""
    pieces = [
        p.path if p == AudioSpan(p.path) else {"path": p.path, "start": p.start, "end": p.end} for p in entry.audio
    ]
    line: dict[str, Any] = {"id": entry.id}
    if pieces:
        line["audio"] = pieces if len(pieces) > 1 else pieces[0]
    return line | {name: getattr(entry, name) for name in TEXT_FIELDS[1:] if getattr(entry, name)}


def _parse_spans(audio: Any) -> tuple[AudioSpan, ...]:
    if audio is None:
        return ()
    return tuple(_parse_span(one) for one in (audio if isinstance(audio, list) else [audio]))


def _parse_span(one: Any) -> AudioSpan:
    if isinstance(one, str) and one:
        return AudioSpan(one)
    if not isinstance(one, Mapping) or set(one) - {"path", "start", "end"} or not isinstance(one.get("path"), str):
        raise BadExample("wrong line", f"audio must be a path or path, start and end, not {one!r}")
    start, end = one.get("start") or 0.0, one.get("end")
    if not isinstance(start, (int, float)) or not isinstance(end, (int, float, type(None))):
        raise BadExample("wrong line", f"start and end must be seconds, not {start!r} and {end!r}")
    if start < 0 or (end is not None and end <= start):
        raise BadExample("wrong line", f"a piece from {start} s to {end} s is none")
    return AudioSpan(one["path"], float(start), None if end is None else float(end))
