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
from data_pipelines.prepare.shard_writer import Dealt, Job, Recipe, deal, make_shard, to_line, tokenizer
from data_pipelines.prepare.statistics import Statistics, table
from data_pipelines.prepare.storage import Folder
from data_pipelines.sources.manifest_entries import Entry
from salmonn_jax.errors import UserError, package

_REJECTED = "{}.rejected.jsonl"
_STATISTICS = "{}.statistics.json"


def prepare(
    entries: Callable[[], Iterator[Entry]],
    recipe: Recipe,
    output: str,
    split: str,
    *,
    workers: int = 1,
    beam: Sequence[str] | None = None,
    clips_per_shard: int = 500,
    rejected_share: float = 0.05,
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
    _check(split, workers, clips_per_shard, recipe)
    if split in finished_splits(folder):
        made = json.loads(folder.read(_STATISTICS.format(split)))
        if made["recipe"] != recipe.plain():
            raise UserError(f"{folder} holds the split {split!r}, made otherwise; name a new folder with --output")
        print(f"{folder} holds the split {split!r} already", file=sys.stderr)
    else:
        dealt = deal(entries(), Job(folder, split, recipe, 0), clips_per_shard)
        job = Job(folder, split, recipe, dealt.shards)
        if beam is None:
            _make_here(job, dealt.entries, workers)
        else:
            _make_on_beam(job, beam)
        made = _finish(job, dealt, rejected_share)
    print(_told(folder, split, made))


def _make_here(job: Job, entries: int, workers: int) -> None:
    """Makes the shards in processes of this machine."""
    with tqdm.tqdm(total=entries, unit="entry", desc=f"making {job.split}") as bar:
        if workers == 1:
            for index in range(job.shards):
                bar.update(make_shard(job, index))
            return
        context = multiprocessing.get_context("spawn")  # threads of this process do not live through a fork
        with concurrent.futures.ProcessPoolExecutor(min(workers, max(job.shards, 1)), mp_context=context) as pool:
            try:
                futures = [pool.submit(make_shard, job, index) for index in range(job.shards)]
                for future in concurrent.futures.as_completed(futures):
                    bar.update(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _make_on_beam(job: Job, options: Sequence[str]) -> None:
    """Makes the shards on an Apache Beam cluster, all of whose workers can write to the folder."""
    beam = package("apache_beam", "beam")
    pipeline_options = package("apache_beam.options.pipeline_options", "beam").PipelineOptions(list(options))
    with beam.Pipeline(options=pipeline_options) as pipeline:
        # Shuffled, or else a runner may fuse the steps and make all shards where their numbers were created.
        numbers = pipeline | beam.Create(range(job.shards)) | beam.Reshuffle()
        _ = numbers | "make shards" >> beam.Map(functools.partial(make_shard, job))


def _finish(job: Job, dealt: Dealt, rejected_share: float) -> dict[str, Any]:
    """Gathers the reports, lists what was rejected, and tells TFDS of the split. Returns what was made.

    Raises:
      UserError: too many entries are rejected; the shards stay for the next attempt.
    """
    folder, split = job.folder, job.split
    statistics, lengths, size, reasons = Statistics(), [], 0, collections.Counter(dealt.wrong)
    with folder.placed(_REJECTED.format(split)) as path, path.open("wb") as file:
        file.write(folder.read(job.work("wrong.jsonl")))
        for index in range(job.shards):
            report = json.loads(folder.read(job.work(f"{index:05d}.json")))
            statistics.join(report["tasks"])
            lengths.append(report["examples"])
            size += report["bytes"]
            reasons.update(one["reason"] for one in report["rejected"])
            file.writelines(map(to_line, report["rejected"]))
    rejected = reasons.total()
    if rejected > rejected_share * dealt.entries or not sum(lengths):
        reason, often = reasons.most_common(1)[0]
        raise UserError(
            f"{rejected} of {dealt.entries} entries are rejected, {often} of them as {reason!r}: see "
            f"{folder}/{_REJECTED.format(split)}, mend them and run this again, or allow more with --rejected-share"
        )
    made = {
        "entries": dealt.entries,
        "examples": sum(lengths),
        "rejected": dict(reasons.most_common()),
        "tasks": statistics.summary(),
        "recipe": job.recipe.plain(),
    }
    folder.write(_STATISTICS.format(split), json.dumps(made, ensure_ascii=False, indent=1).encode())
    mine = {job.shard(index) for index in range(job.shards)}
    for name in folder.names(shard_prefix(split)):
        if name not in mine:  # of an attempt that was interrupted, or at another number of shards
            folder.remove(name)
    add_split(folder, split, lengths, size)
    folder.remove(job.work(""))
    return made


def _told(folder: Folder, split: str, made: dict[str, Any]) -> str:
    """What was made, for people."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in made["rejected"].items())
    rejected = (
        f"; {sum(made['rejected'].values())} of {made['entries']} entries rejected ({reasons})" if reasons else ""
    )
    return f"{folder} {split}: {made['examples']} examples{rejected}\n{table(made['tasks'])}"


def _check(split: str, workers: int, clips_per_shard: int, recipe: Recipe) -> None:
    if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
        raise UserError(f"--split is {split!r}; it must be letters, digits and underscores")
    for name, value in (("--workers", workers), ("--clips-per-shard", clips_per_shard)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if recipe.tokenizer is not None:
        tokenizer(recipe.tokenizer)
