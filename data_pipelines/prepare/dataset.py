"""Preparation of data sets that TFDS reads, in local processes or on an Apache Beam cluster. Used by `launch.prepare`.

A data set consists of its shards and of these files:

    SPLIT.statistics.json              statistics of a split, and the configuration it was prepared with
    SPLIT.rejected.jsonl               rejected entries, with the reasons
    features.json, dataset_info.json   metadata of TFDS; a split is finished when dataset_info.json lists it

TFDS's own Beam writer shuffles all records through the cluster and starts again after an interruption. Here the
processes of a cluster do the same as those of one machine: they call `write_shard` for each shard.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from data_pipelines.prepare.metadata import add_split, finished_splits, shard_prefix
from data_pipelines.prepare.shard_writer import (
    PrepareConfig,
    ShardJob,
    ShardPlan,
    cached_tokenizer,
    plan_shards,
    to_json_line,
    write_shard,
)
from data_pipelines.prepare.statistics import Statistics, format_table
from data_pipelines.prepare.storage import Folder
from data_pipelines.sources.manifest_entry import ManifestEntry
from salmonn_jax.errors import UserError, import_optional

_REJECTED = "{}.rejected.jsonl"
_STATISTICS = "{}.statistics.json"


def prepare_split(
    read_entries: Callable[[], Iterator[ManifestEntry]],
    config: PrepareConfig,
    output: str,
    split: str,
    *,
    workers: int = 1,
    beam_options: Sequence[str] | None = None,
    clips_per_shard: int = 500,
    max_rejected_share: float = 0.05,
) -> None:
    """Prepares one split of a data set and prints its statistics. A finished split is left unchanged.

    After an interruption, the next call writes the missing shards and those whose entries have changed. The bytes of
    the data set do not depend on the number of workers or on Beam.

    Args:
      read_entries: returns an iterator over the manifest entries, in order. It is called only if the split is not
        finished. The iterator may raise BadExample for an entry and continue with the next one. If several entries
        have the same id, the first one is used.
      config: origin, audio rules and storage format of the examples.
      output: folder of the data set, which may contain other splits: a path, or a URL that fsspec writes to.
      split: name of the split: letters, digits and underscores.
      workers: number of local processes that write shards.
      beam_options: options of the Apache Beam pipeline that writes the shards instead of local processes.
      clips_per_shard: number of entries of a shard.
      max_rejected_share: maximum share of rejected entries.

    Raises:
      UserError: too many entries are rejected, or a finished split was prepared with a different configuration.
    """
    folder = Folder(output)
    _check(split, workers, clips_per_shard, config)
    if split in finished_splits(folder):
        summary = json.loads(folder.read(_STATISTICS.format(split)))
        if summary.get("config") != config.to_dict():
            raise UserError(
                f"{folder} holds the split {split!r}, prepared with other options or another version; choose another "
                "folder with --output"
            )
        print(f"{folder} already holds the split {split!r}", file=sys.stderr)
    else:
        plan = plan_shards(read_entries(), ShardJob(folder, split, config, 0), clips_per_shard)
        job = ShardJob(folder, split, config, plan.num_shards)
        if beam_options is None:
            _write_shards_locally(job, plan.num_entries, workers)
        else:
            _write_shards_on_beam(job, beam_options)
        summary = _finish(job, plan, max_rejected_share)
    print(_format_summary(folder, split, summary))


def _write_shards_locally(job: ShardJob, num_entries: int, workers: int) -> None:
    """Writes the shards in processes of this machine."""
    with tqdm.tqdm(total=num_entries, unit="entry", desc=f"writing {job.split}") as bar:
        if workers == 1:
            for index in range(job.num_shards):
                bar.update(write_shard(job, index))
            return
        context = multiprocessing.get_context("spawn")  # a forked process would not have the threads of this one
        with concurrent.futures.ProcessPoolExecutor(min(workers, max(job.num_shards, 1)), mp_context=context) as pool:
            try:
                futures = [pool.submit(write_shard, job, index) for index in range(job.num_shards)]
                for future in concurrent.futures.as_completed(futures):
                    bar.update(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_shards_on_beam(job: ShardJob, options: Sequence[str]) -> None:
    """Writes the shards on an Apache Beam cluster. All its workers must be able to write to the folder."""
    beam = import_optional("apache_beam", "beam")
    pipeline_options = import_optional("apache_beam.options.pipeline_options", "beam").PipelineOptions(list(options))
    with beam.Pipeline(options=pipeline_options) as pipeline:
        # Without Reshuffle, a runner may fuse the steps and write all shards in the worker that created the indices.
        indices = pipeline | beam.Create(range(job.num_shards)) | beam.Reshuffle()
        _ = indices | "write shards" >> beam.Map(functools.partial(write_shard, job))


def _finish(job: ShardJob, plan: ShardPlan, max_rejected_share: float) -> dict[str, Any]:
    """Merges the reports of the shards, writes the lists and statistics, and adds the split to the TFDS metadata.

    Returns:
      The content of SPLIT.statistics.json.

    Raises:
      UserError: too many entries are rejected. The shards stay for the next attempt.
    """
    folder, split = job.folder, job.split
    statistics, shard_lengths, num_bytes = Statistics(), [], 0
    reasons = collections.Counter(plan.rejected)
    with folder.atomic_path(_REJECTED.format(split)) as path, path.open("wb") as file:
        file.write(folder.read(job.work_file("invalid.jsonl")))
        for index in range(job.num_shards):
            report = json.loads(folder.read(job.work_file(f"{index:05d}.json")))
            statistics.merge(report["tasks"])
            shard_lengths.append(report["examples"])
            num_bytes += report["bytes"]
            reasons.update(rejection["reason"] for rejection in report["rejected"])
            file.writelines(map(to_json_line, report["rejected"]))
    rejected = reasons.total()
    if rejected > max_rejected_share * plan.num_entries or not sum(shard_lengths):
        reason, count = reasons.most_common(1)[0]
        raise UserError(
            f"{rejected} of {plan.num_entries} entries are rejected, {count} of them as {reason!r}: see "
            f"{folder}/{_REJECTED.format(split)}; correct them and run the command again, or raise --rejected-share"
        )
    summary = {
        "entries": plan.num_entries,
        "examples": sum(shard_lengths),
        "rejected": dict(reasons.most_common()),
        "tasks": statistics.summary(),
        "config": job.config.to_dict(),
    }
    folder.write(_STATISTICS.format(split), json.dumps(summary, ensure_ascii=False, indent=1).encode())
    shard_files = {job.shard_file(index) for index in range(job.num_shards)}
    for name in folder.list_names(shard_prefix(split)):
        if name not in shard_files:  # left by an interrupted attempt, or by one with another number of shards
            folder.remove(name)
    add_split(folder, split, shard_lengths, num_bytes)
    folder.remove(job.work_file(""))
    return summary


def _format_summary(folder: Folder, split: str, summary: dict[str, Any]) -> str:
    """Formats the statistics of a split for the terminal."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["rejected"].items())
    rejected = (
        f"; {sum(summary['rejected'].values())} of {summary['entries']} entries rejected ({reasons})" if reasons else ""
    )
    return f"{folder} {split}: {summary['examples']} examples{rejected}\n{format_table(summary['tasks'])}"


def _check(split: str, workers: int, clips_per_shard: int, config: PrepareConfig) -> None:
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
        raise UserError(f"--split={split!r}: must be letters, digits and underscores, starting with a letter")
    for name, value in (("--workers", workers), ("--clips-per-shard", clips_per_shard)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    if config.tokenizer is not None:  # raises an error before anything is written if there is no tokenizer
        cached_tokenizer(config.tokenizer)
