"""Division of manifest entries into shards, and the function that writes a shard. `prepare.dataset` uses both.

A shard depends only on its entries and on the configuration. Local processes and workers of a cluster therefore write
the same bytes, and a shard that exists together with its report is not written again.

    SPLIT.unfinished/00003.jsonl              entries of a shard
    SPLIT.unfinished/00003.json               report of a shard, written after the shard
    clips-SPLIT.array_record-00003-of-00008   shard
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
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
    """Configuration of the preparation of a split.

    Attributes:
      origin: description of where the entries come from, for error messages and statistics.
      rules: rules by which clips are read.
      audio: encoding of the stored clips.
      tokenizer: directory of the tokenizer for the token statistics of answers; None counts characters only.
    """

    origin: str
    rules: AudioRules = dataclasses.field(default_factory=AudioRules)
    audio: AudioEncoding = "flac"
    tokenizer: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as a JSON object."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Arguments of `write_shard` that all shards of a split share. It can be pickled."""

    folder: Folder
    split: str
    config: PrepareConfig
    num_shards: int

    def work_file(self, name: str) -> str:
        """Returns the name of a temporary file, which exists until the split is finished."""
        return f"{self.split}.unfinished/{name}"

    def shard_file(self, index: int) -> str:
        """Returns the file name of a shard."""
        return shard_name(self.split, index, self.num_shards)


class ShardPlan(NamedTuple):
    """Result of `plan_shards`."""

    num_shards: int
    num_entries: int  # number of entries of the manifest, including rejected ones
    rejected: collections.Counter  # number of entries that are rejected before their clips are read, by reason


def write_shard(job: ShardJob, index: int) -> int:
    """Writes one shard and its report, unless both exist. Returns the number of entries of the shard.

    Raises:
      UserError: a clip is too long, and `too_long` of the rules is "error".
    """
    from tensorflow_datasets.core import file_adapters  # slow to import

    entry_lines = job.folder.read(job.work_file(f"{index:05d}.jsonl"))
    entries = [entry_from_json(json.loads(line), 0) for line in entry_lines.splitlines()]
    digest = hashlib.sha256(entry_lines + json.dumps(job.config.to_dict()).encode()).hexdigest()
    if _is_written(job, index, digest, entries):
        return len(entries)
    statistics, rejected = Statistics(), []

    def records() -> Iterator[tuple[str, bytes]]:
        for entry in entries:
            try:
                clip = read_clip(entry.audio, job.config.rules) if entry.audio else None
            except BadExample as error:
                if error.reason == "too long" and job.config.rules.too_long == "error":
                    raise UserError(f"{entry.id}: {error}; or use --too-long truncate, chunk or drop") from None
                rejected.append(Rejection.from_error(job.config.origin, entry.id, error))
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
        "rejected": [rejection._asdict() for rejection in rejected],
    }
    job.folder.write(job.work_file(f"{index:05d}.json"), to_json_line(report))
    return len(entries)


def _is_written(job: ShardJob, index: int, digest: str, entries: Sequence[ManifestEntry]) -> bool:
    """Returns whether the shard exists with the same entries, and its rejected entries still cannot be read.

    A user may have corrected a file since the shard was written.
    """
    report = json.loads(job.folder.read(job.work_file(f"{index:05d}.json")) or b"{}")
    if report.get("digest") != digest or job.folder.size(job.shard_file(index)) != report["bytes"]:
        return False
    rejected_ids = {rejection["example"] for rejection in report["rejected"]}
    return not any(_is_readable(entry, job.config.rules) for entry in entries if entry.id in rejected_ids)


def _is_readable(entry: ManifestEntry, rules: AudioRules) -> bool:
    try:
        read_clip(entry.audio, rules)
    except BadExample:
        return False
    return True


def plan_shards(entries: Iterator[ManifestEntry], job: ShardJob, entries_per_shard: int) -> ShardPlan:
    """Writes the entries of each shard to its `.jsonl` file, and invalid entries to `invalid.jsonl`.

    Args:
      entries: manifest entries, in order. The iterator may raise BadExample and continue.
      job: job that names the files; its `num_shards` is not used.
      entries_per_shard: number of entries of every shard but the last.

    Raises:
      UserError: there are no entries.
    """
    num_entries, num_shards, rejected, lines = 0, 0, collections.Counter(), []
    with job.folder.atomic_path(job.work_file("invalid.jsonl")) as path, path.open("wb") as file:
        for entry in tqdm.tqdm(
            _check_entries(entries, job.config.origin), unit="entry", desc="reading entries", leave=False
        ):
            num_entries += 1
            if isinstance(entry, Rejection):
                rejected[entry.reason] += 1
                file.write(to_json_line(entry._asdict()))
                continue
            lines.append(to_json_line(entry_to_json(entry)))
            if len(lines) == entries_per_shard:
                job.folder.write(job.work_file(f"{num_shards:05d}.jsonl"), b"".join(lines))
                num_shards, lines = num_shards + 1, []
    if lines:
        job.folder.write(job.work_file(f"{num_shards:05d}.jsonl"), b"".join(lines))
        num_shards += 1
    if not num_entries:
        raise UserError(f"{job.config.origin} has no entries; choose another manifest or split")
    return ShardPlan(num_shards, num_entries, rejected)


def _check_entries(entries: Iterator[ManifestEntry], origin: str) -> Iterator[ManifestEntry | Rejection]:
    """Yields the entries. An entry that is invalid, or has no answer or the id of an earlier entry, is a Rejection."""
    seen = set()  # hashes of ids, which take less memory than the ids
    for number in itertools.count(1):
        try:
            entry = next(entries)
        except StopIteration:
            return
        except BadExample as error:
            yield Rejection.from_error(origin, f"entry {number}", error)
            continue
        if not entry.answer.strip():
            yield Rejection(origin, entry.id, "invalid", "the answer is missing or empty")
        elif hash(entry.id) in seen:
            yield Rejection(origin, entry.id, "invalid", "an earlier entry has the same id")
        else:
            seen.add(hash(entry.id))
            yield entry


@functools.cache
def cached_tokenizer(directory: str) -> Tokenizer:
    """Returns the tokenizer of a directory, which is loaded once per process."""
    return load_tokenizer(directory)


def to_json_line(values: dict[str, Any]) -> bytes:
    """Serialises an object as one line of JSON."""
    # A rejection may quote text with surrogates. Python's backslash replacement of these is also JSON's escape.
    return json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
