"""TFDS metadata of prepared data sets. Writing it marks a split as finished."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from data_pipelines.prepare.storage import Folder
from data_pipelines.sources.records import features
from salmonn_jax.errors import UserError

NAME = "clips"  # TFDS name of every prepared data set
VERSION = "1.0.0"  # version of the record format
_INFO, _FEATURES = "dataset_info.json", "features.json"


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name of a shard, in the form that TFDS expects.

    Args:
      split: name of the split.
      index: index of the shard.
      count: number of shards of the split.
    """
    return f"{shard_prefix(split)}{index:05d}-of-{count:05d}"


def shard_prefix(split: str) -> str:
    """Returns the common prefix of the file names of the shards of a split."""
    return f"{NAME}-{split}.array_record-"


def finished_splits(folder: Folder) -> dict[str, dict[str, Any]]:
    """Returns the TFDS metadata of the finished splits of a folder, by name.

    Raises:
      UserError: the folder holds a data set that was not prepared here.
    """
    info = json.loads(folder.read(_INFO) or b"{}")
    if info and info.get("name") != NAME:
        raise UserError(f"{folder} holds the data set {info.get('name')!r}; choose another folder with --output")
    return {split["name"]: split for split in info.get("splits", ())}


def add_split(folder: Folder, split: str, shard_lengths: Sequence[int], num_bytes: int) -> None:
    """Adds a split to the TFDS metadata of a folder. Other splits stay.

    Args:
      folder: folder of the data set.
      split: name of the split.
      shard_lengths: number of records of each shard.
      num_bytes: total size of the shards.
    """
    import tensorflow_datasets as tfds  # slow to import

    known = finished_splits(folder) | {split: {"shardLengths": shard_lengths, "numBytes": num_bytes}}
    with tempfile.TemporaryDirectory() as temporary:
        identity = tfds.core.DatasetIdentity(
            name=NAME, version=tfds.core.Version(VERSION), data_dir=temporary, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=features(),
            description="Examples made by `python -m launch.prepare`: questions about clips, with their answers.",
        )
        info.set_file_format("array_record")
        template = tfds.core.ShardedFileTemplate(
            data_dir=pathlib.Path(temporary), dataset_name=NAME, filetype_suffix="array_record"
        )
        infos = [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[int(length) for length in row["shardLengths"]],
                num_bytes=int(row["numBytes"]),
                filename_template=template,
            )
            for name, row in sorted(known.items())
        ]
        info.set_splits(tfds.core.splits.SplitDict(infos))
        info.write_to_directory(temporary)
        for name in (_FEATURES, _INFO):  # dataset_info.json last, because it marks the split as finished
            folder.write(name, (pathlib.Path(temporary) / name).read_bytes())
