"""Makes data sets that TFDS reads: their shards, here or on an Apache Beam cluster, and the files that describe them.

    SPLIT.statistics.json              what is in a split, and what it was made of
    SPLIT.rejected.jsonl               what is not in it, and why
    features.json, dataset_info.json   TFDS's own; a split is finished when the second names it

TFDS has a writer on Beam of its own; it shuffles all records through the cluster, and begins anew after an
interruption. Here a cluster does what the processes of one machine do: it calls `make_shard` for each shard.
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
    """Makes one split of a data set and prints what is in it; a finished one is left alone.

    Nothing that an interruption leaves is taken for finished: calling again makes the shards that are missing, and
    those whose entries are others by now. The bytes do not depend on who makes them.

    Args:
      entries: gives them in order, if there is anything to do; BadExample where one is wrong, with the next ones behind
        it. Of those of one id the first is taken.
      output: the folder of the data set, which may hold other splits: a path, or a URL that fsspec writes to.
      split: a name of letters, digits and underscores.
      workers: processes that make shards.
      beam: options of an Apache Beam pipeline that makes them instead.
      clips_per_shard: entries that a shard is made of.
      rejected_share: the share of entries that may be rejected.

    Raises:
      UserError: too many entries are rejected, or the split is there and was made otherwise.
    """
    folder = Folder(output)
    _check(split, workers, clips_per_shard, config)
    if split in finished_splits(folder):
        made = json.loads(folder.read(_STATISTICS.format(split)))
        if made["recipe"] != config.to_dict():
            raise UserError(f"{folder} holds the split {split!r}, made otherwise; name a new folder with --output")
        print(f"{folder} holds the split {split!r} already", file=sys.stderr)
    else:
        dealt = plan_shards(read_entries(), ShardJob(folder, split, config, 0), clips_per_shard)
        job = ShardJob(folder, split, config, dealt.num_shards)
        if beam_options is None:
            _write_shards_locally(job, dealt.num_entries, workers)
        else:
            _write_shards_on_beam(job, beam_options)
        made = _finish(job, dealt, max_rejected_share)
    print(_format_summary(folder, split, made))


def _write_shards_locally(job: ShardJob, num_entries: int, workers: int) -> None:
    """Makes the shards in processes of this machine."""
    with tqdm.tqdm(total=num_entries, unit="entry", desc=f"making {job.split}") as bar:
        if workers == 1:
            for index in range(job.num_shards):
                bar.update(write_shard(job, index))
            return
        context = multiprocessing.get_context("spawn")  # threads of this process do not live through a fork
        with concurrent.futures.ProcessPoolExecutor(min(workers, max(job.num_shards, 1)), mp_context=context) as pool:
            try:
                futures = [pool.submit(write_shard, job, index) for index in range(job.num_shards)]
                for future in concurrent.futures.as_completed(futures):
                    bar.update(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_shards_on_beam(job: ShardJob, options: Sequence[str]) -> None:
    """Makes the shards on an Apache Beam cluster, all of whose workers can write to the folder."""
    beam = import_optional("apache_beam", "beam")
    pipeline_options = import_optional("apache_beam.options.pipeline_options", "beam").PipelineOptions(list(options))
    with beam.Pipeline(options=pipeline_options) as pipeline:
        # Shuffled, or else a runner may fuse the steps and make all shards where their numbers were created.
        numbers = pipeline | beam.Create(range(job.num_shards)) | beam.Reshuffle()
        _ = numbers | "make shards" >> beam.Map(functools.partial(write_shard, job))


def _finish(job: ShardJob, dealt: ShardPlan, max_rejected_share: float) -> dict[str, Any]:
    """Gathers the reports, lists what was rejected, and tells TFDS of the split. Returns what was made.

    Raises:
      UserError: too many entries are rejected; the shards stay for the next attempt.
    """
    folder, split = job.folder, job.split
    statistics, lengths, size, reasons = Statistics(), [], 0, collections.Counter(dealt.rejected)
    with folder.atomic_path(_REJECTED.format(split)) as path, path.open("wb") as file:
        file.write(folder.read(job.work_file("wrong.jsonl")))
        for index in range(job.num_shards):
            report = json.loads(folder.read(job.work_file(f"{index:05d}.json")))
            statistics.merge(report["tasks"])
            lengths.append(report["examples"])
            size += report["bytes"]
            reasons.update(one["reason"] for one in report["rejected"])
            file.writelines(map(to_json_line, report["rejected"]))
    rejected = reasons.total()
    if rejected > max_rejected_share * dealt.num_entries or not sum(lengths):
        reason, often = reasons.most_common(1)[0]
        raise UserError(
            f"{rejected} of {dealt.num_entries} entries are rejected, {often} of them as {reason!r}: see "
            f"{folder}/{_REJECTED.format(split)}, mend them and run this again, or allow more with --rejected-share"
        )
    made = {
        "entries": dealt.num_entries,
        "examples": sum(lengths),
        "rejected": dict(reasons.most_common()),
        "tasks": statistics.summary(),
        "recipe": job.config.to_dict(),
    }
    folder.write(_STATISTICS.format(split), json.dumps(made, ensure_ascii=False, indent=1).encode())
    mine = {job.shard_file(index) for index in range(job.num_shards)}
    for name in folder.list_names(shard_prefix(split)):
        if name not in mine:  # of an attempt that was interrupted, or at another number of shards
            folder.remove(name)
    add_split(folder, split, lengths, size)
    folder.remove(job.work_file(""))
    return made


def _format_summary(folder: Folder, split: str, made: dict[str, Any]) -> str:
    """What was made, for people."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in made["rejected"].items())
    rejected = (
        f"; {sum(made['rejected'].values())} of {made['entries']} entries rejected ({reasons})" if reasons else ""
    )
    return f"{folder} {split}: {made['examples']} examples{rejected}\n{format_table(made['tasks'])}"


def _check(split: str, workers: int, clips_per_shard: int, config: PrepareConfig) -> None:
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
        raise UserError(f"--split is {split!r}; it must be letters, digits and underscores")
    for name, value in (("--workers", workers), ("--clips-per-shard", clips_per_shard)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if config.tokenizer is not None:
        cached_tokenizer(config.tokenizer)
