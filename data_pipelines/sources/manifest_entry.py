"""Manifest entries, which are examples whose audio is not read yet, and their conversion from and to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data_pipelines.examples import LIST_FIELDS, TEXT_FIELDS, TEXT_ONLY_TASKS, BadExample
from salmonn_jax.errors import UserError, check_unicode
from salmonn_jax.prompts import AUDIO_PLACEHOLDER, add_audio_placeholder

MAX_SECONDS = 1e9  # bound of start and end; larger values, infinity and NaN are mistakes
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
    """One example of a manifest. The fields other than `audio` are those of `data_pipelines.examples.Example`.

    Attributes:
      id: identifier, unique within the manifest.
      audio: spans that are joined to one clip, with `GAP_SAMPLES` zero samples in between; empty for a text-only
        example, whose task is one of `TEXT_ONLY_TASKS`.
      answer: text that the model should generate.
      task: name of the task. It selects the prompt templates and the metric.
      prompt: text of the user; "" for a prompt template of the task. `<SpeechHere>` is the position of the clip; a
        prompt without it gets the clip at its beginning.
      question: text that replaces `{}` in the prompt template.
      transcript: words spoken in the clip, if known.
      references: all correct answers if there are several, `answer` first.
      metric: generic metric that scores the example, if not those of the task.
      language: language of the answer, if known.
      choices: answers from which the model chooses, if the question has any.
      group: properties by which scores are grouped.

    Raises:
      BadExample: a text or a path is not Unicode text or a path is too long; there is no audio and the task needs it,
        or audio and the task has none; or the prompt has more positions for clips than the example has clips.
    """

    id: str
    audio: tuple[AudioSpan, ...] = ()
    answer: str
    task: str = "asr"
    prompt: str = ""
    question: str = ""
    transcript: str = ""
    references: tuple[str, ...] = ()
    metric: str = ""
    language: str = ""
    choices: tuple[str, ...] = ()
    group: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, texts in (("references", self.references), ("choices", self.choices), ("group", self.group)):
            for text in texts:
                _as_bad_example(check_unicode, name, text)
        for text in self.group.values():
            _as_bad_example(check_unicode, "group", text)
        for name in TEXT_FIELDS:
            _as_bad_example(check_unicode, name, getattr(self, name))
        for span in self.audio:
            _as_bad_example(check_unicode, "audio", span.path)
        if self.audio and self.task in TEXT_ONLY_TASKS:
            raise BadExample("invalid", f"task={self.task!r} is for text-only examples, but the example has audio")
        if not self.audio and self.task not in TEXT_ONLY_TASKS:
            raise BadExample(
                "invalid", f"task={_shorten(self.task)} needs audio; a text-only example has the task 'text'"
            )
        if not self.audio and not self.prompt.strip():
            raise BadExample("invalid", "a text-only example needs its own prompt")
        if AUDIO_PLACEHOLDER in self.question:
            raise BadExample("invalid", f"question={_shorten(self.question)}: must not contain {AUDIO_PLACEHOLDER}")
        if self.prompt:
            _as_bad_example(add_audio_placeholder, self.prompt, num_clips=1 if self.audio else 0)


def entry_from_json(line: Any, number: int) -> ManifestEntry:
    """Converts a parsed line of a `.jsonl` manifest to an entry.

        {"id": "1", "audio": "a.flac", "answer": "hello", "task": "asr"}

    `audio` is a path, an object {"path", "start", "end"} for a part of a file, or a list of these. Text-only examples
    have no `audio`. The task is "asr" if the line does not name it, and "text" if it has no field `audio` either.
    `references`, a list of all correct answers, may replace `answer`.

    Args:
      line: the parsed line.
      number: index of the entry, the id of an entry without `id`.

    Raises:
      BadExample: a field is missing, unknown or of the wrong type, or the entry is invalid (see `ManifestEntry`).
    """
    if not isinstance(line, Mapping):
        raise BadExample("invalid", "the line is not a JSON object")
    known_fields = ("audio", *TEXT_FIELDS, *LIST_FIELDS, "group")
    unknown = set(line) - set(known_fields)
    if unknown:
        known = ", ".join(known_fields)
        raise BadExample("invalid", f"unknown field {sorted(unknown)[0]!r}; the known fields are: {known}")
    texts = {name: line[name] for name in TEXT_FIELDS if line.get(name) is not None}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadExample("invalid", f"{name}={text!r}: must be a string")
    lists = {name: _parse_texts(name, line[name]) for name in LIST_FIELDS if line.get(name) is not None}
    if "references" in lists:
        if "answer" in texts:
            raise BadExample("invalid", "the line has answer and references; give one of them")
        texts["answer"] = lists["references"][0]
    if not texts.get("answer", "").strip():
        raise BadExample("invalid", "the answer is missing or empty")
    task = "asr" if "audio" in line else TEXT_ONLY_TASKS[0]
    return ManifestEntry(
        **{"id": str(number), "task": task, **texts, **lists},
        audio=_parse_spans(line.get("audio")),
        group=_parse_group(line.get("group")),
    )


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
    line |= {name: getattr(entry, name) for name in TEXT_FIELDS[1:] if getattr(entry, name)}
    line |= {name: list(getattr(entry, name)) for name in LIST_FIELDS if getattr(entry, name)}
    if entry.references:
        del line["answer"]
    return line | ({"group": dict(entry.group)} if entry.group else {})


def _parse_texts(name: str, texts: Any) -> tuple[str, ...]:
    """Returns a list of texts. Raises BadExample if it is anything else, is empty, or a text is blank."""
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadExample("invalid", f"{name}={_shorten(texts)}: must be a list of texts that are not empty")
    return tuple(texts)


def _parse_group(group: Any) -> dict[str, str]:
    if group is None:
        return {}
    if not isinstance(group, Mapping) or not all(isinstance(value, str) for value in group.values()):
        raise BadExample("invalid", f"group={_shorten(group)}: must be an object whose values are strings")
    return dict(group)


def _parse_spans(audio: Any) -> tuple[AudioSpan, ...]:
    if audio is None:
        return ()
    return tuple(_parse_span(span) for span in (audio if isinstance(audio, list) else [audio]))


def _parse_span(span: Any) -> AudioSpan:
    if isinstance(span, str) and span:
        return AudioSpan(span)
    if not isinstance(span, Mapping) or set(span) - {"path", "start", "end"} or not isinstance(span.get("path"), str):
        raise BadExample("invalid", f"audio={span!r}: must be a path, or an object with path, start and end")
    if not span["path"]:
        raise BadExample("invalid", "audio: the path is empty")
    start, end = span.get("start"), span.get("end")
    if not all(value is None or _is_seconds(value) for value in (start, end)):
        raise BadExample("invalid", f"start={_shorten(start)}, end={_shorten(end)}: must be finite numbers of seconds")
    start = start or 0.0
    if start < 0 or (end is not None and end <= start):
        raise BadExample("invalid", f"start={start}, end={end}: must be 0 <= start < end")
    return AudioSpan(span["path"], float(start), None if end is None else float(end))


def _is_seconds(value: Any) -> bool:
    """Returns whether a value is a finite number. NaN and infinity, which Python reads from JSON, are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_SECONDS


def _as_bad_example(check: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Calls a check and turns its UserError into BadExample."""
    try:
        check(*args, **kwargs)
    except UserError as error:
        raise BadExample("invalid", str(error)) from None


def _shorten(value: Any) -> str:
    """Returns the representation of a value, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
