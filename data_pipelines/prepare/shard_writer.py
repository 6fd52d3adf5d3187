"""Entries dealt into lists, and `make_shard`, the pure function that makes a file of records of each.

A shard is a function of its list and the recipe. So processes of this machine and workers of a cluster make the same
bytes, and a shard that is there with its report is not made again.

    SPLIT.unfinished/00003.jsonl              the entries of a shard
    SPLIT.unfinished/00003.json               its report, written when the shard is
    clips-SPLIT.array_record-00003-of-00008   a shard
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tqdm

from data_pipelines.examples import BadExample, Rejection
from data_pipelines.prepare.metadata import shard_name
from data_pipelines.prepare.statistics import Statistics
from data_pipelines.prepare.storage import Folder
from data_pipelines.sources.audio import AudioRules, read_clip
from data_pipelines.sources.manifest import to_example
from data_pipelines.sources.manifest_entry import ManifestEntry, entry_from_json, entry_to_json
from data_pipelines.sources.records import AudioEncoding, to_record
from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What is made of entries.

    Attributes:
      source: where they come from, for the record.
      rules: how clips are read.
      audio: how they are stored.
      tokenizer: directory of the tokenizer that answers are counted in; None counts characters only.
    """

    source: str
    rules: AudioRules = dataclasses.field(default_factory=AudioRules)
    audio: AudioEncoding = "flac"
    tokenizer: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """What `make_shard` is told: where the lists are, how many, and the recipe."""

    folder: Folder
    split: str
    config: PrepareConfig
    num_shards: int

    def work_file(self, name: str) -> str:
        """The name of a file that is there while the split is made."""
        return f"{self.split}.unfinished/{name}"

    def shard_file(self, index: int) -> str:
        """The name of the file of a shard."""
        return shard_name(self.split, index, self.num_shards)


class ShardPlan(NamedTuple):
    """How many shards there are to be, of how many entries, and how many of these are wrong already, by reason."""

    num_shards: int
    num_entries: int
    rejected: collections.Counter


def write_shard(job: ShardJob, index: int) -> int:
    """Makes one shard from its list, unless it is there; returns the number of entries it was made of.

    Raises:
      UserError: a clip is too long, and the rules call that an error.
    """
    from tensorflow_datasets.core import file_adapters  # slow to import

    listed = job.folder.read(job.work_file(f"{index:05d}.jsonl"))
    entries = [entry_from_json(json.loads(line), 0) for line in listed.splitlines()]
    digest = hashlib.sha256(listed + json.dumps(job.config.to_dict()).encode()).hexdigest()
    if _is_written(job, index, digest, entries):
        return len(entries)
    statistics, rejected = Statistics(), []

    def records() -> Iterator[tuple[str, bytes]]:
        for entry in entries:
            try:
                clip = read_clip(entry.audio, job.config.rules) if entry.audio else None
            except BadExample as error:
                if error.reason == "too long" and job.config.rules.too_long == "error":
                    raise UserError(f"{entry.id}: {error}; --too-long truncate, chunk or drop would go on") from None
                rejected.append(Rejection.from_error(job.config.source, entry.id, error))
                continue
            measures = {} if clip is None else {"samples": len(clip)}
            if job.config.tokenizer is not None:
                measures["tokens"] = len(cached_tokenizer(job.config.tokenizer).encode(entry.answer))
            statistics.add(entry.task, characters=len(entry.answer), **measures)
            yield entry.id, to_record(to_example(entry, "", clip), job.config.audio)

    with job.folder.atomic_path(job.shard_file(index)) as path:
        file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD].write_examples(path, records())
        size = path.stat().st_size
    report = {
        "digest": digest,
        "bytes": size,
        "examples": len(entries) - len(rejected),
        "tasks": statistics.to_json(),
        "rejected": [one._asdict() for one in rejected],
    }
    job.folder.write(job.work_file(f"{index:05d}.json"), to_json_line(report))
    return len(entries)


def _is_written(job: ShardJob, index: int, digest: str, entries: Sequence[ManifestEntry]) -> bool:
    """Whether the shard is there, and what was rejected still is: since then a file may have been mended."""
    report = json.loads(job.folder.read(job.work_file(f"{index:05d}.json")) or b"{}")
    if report.get("digest") != digest or job.folder.size(job.shard_file(index)) != report["bytes"]:
        return False
    again = {one["example"] for one in report["rejected"]}
    return not any(_is_good(entry, job.config.rules) for entry in entries if entry.id in again)


def _is_good(entry: ManifestEntry, rules: AudioRules) -> bool:
    try:
        read_clip(entry.audio, rules)
    except BadExample:
        return False
    return True


def plan_shards(entries: Iterator[ManifestEntry], job: ShardJob, entries_per_shard: int) -> ShardPlan:
    """Writes the lists: each has the next `size` entries. What cannot be on a list goes to `wrong.jsonl`.

    Raises:
      UserError: there are no entries.
    """
    count, shards, wrong, lines = 0, 0, collections.Counter(), []
    with job.folder.atomic_path(job.work_file("wrong.jsonl")) as path, path.open("wb") as file:
        for entry in tqdm.tqdm(
            _check_entries(entries, job.config.source), unit="entry", desc="reading entries", leave=False
        ):
            count += 1
            if isinstance(entry, Rejection):
                wrong[entry.reason] += 1
                file.write(to_json_line(entry._asdict()))
                continue
            lines.append(to_json_line(entry_to_json(entry)))
            if len(lines) == entries_per_shard:
                job.folder.write(job.work_file(f"{shards:05d}.jsonl"), b"".join(lines))
                shards, lines = shards + 1, []
    if lines:
        job.folder.write(job.work_file(f"{shards:05d}.jsonl"), b"".join(lines))
        shards += 1
    if not count:
        raise UserError(f"{job.config.source} has no entries")
    return ShardPlan(shards, count, wrong)


def _check_entries(entries: Iterator[ManifestEntry], source: str) -> Iterator[ManifestEntry | Rejection]:
    """The entries, with those that cannot be read, have no answer, or the id of another as rejected."""
    seen = set()  # numbers, which take less memory than texts
    for number in itertools.count(1):
        try:
            entry = next(entries)
        except StopIteration:
            return
        except BadExample as error:
            yield Rejection.from_error(source, f"entry {number}", error)
            continue
        if not entry.answer.strip():
            yield Rejection(source, entry.id, "wrong line", "it has no answer")
        elif hash(entry.id) in seen:
            yield Rejection(source, entry.id, "wrong line", "another entry has this id")
        else:
            seen.add(hash(entry.id))
            yield entry


@functools.cache
def cached_tokenizer(directory: str) -> Tokenizer:
    """The tokenizer of a directory, opened once a process."""
    return load_tokenizer(pathlib.Path(directory))


def to_json_line(values: dict[str, Any]) -> bytes:
    """A line of JSON."""
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
