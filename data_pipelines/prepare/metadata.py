"""The files by which TFDS knows a data set. With them a split is finished."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from data_pipelines.prepare.storage import Folder
from data_pipelines.sources.records import features
from salmonn_jax.errors import UserError

NAME = "clips"  # of every data set, for TFDS
VERSION = "1.0.0"  # of what a record holds
_INFO, _FEATURES = "dataset_info.json", "features.json"


def shard_name(split: str, index: int, count: int) -> str:
    """The name of a file of records, as TFDS expects it."""
    return f"{shard_prefix(split)}{index:05d}-of-{count:05d}"


def shard_prefix(split: str) -> str:
    """How the names of a split's files of records begin."""
    return f"{NAME}-{split}.array_record-"


def finished_splits(folder: Folder) -> dict[str, dict[str, Any]]:
    """What TFDS knows of each split of a folder.

    Raises:
      UserError: the folder holds another data set.
    """
    info = json.loads(folder.read(_INFO) or b"{}")
    if info and info.get("name") != NAME:
        raise UserError(f"{folder} holds the data set {info.get('name')!r}; name a new folder with --output")
    return {split["name"]: split for split in info.get("splits", ())}


def add_split(folder: Folder, split: str, lengths: Sequence[int], size: int) -> None:
    """Tells TFDS of a split: of its files the numbers of records, and the bytes in all. Other splits stay."""
    import tensorflow_datasets as tfds  # slow to import

    known = finished_splits(folder) | {split: {"shardLengths": lengths, "numBytes": size}}
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
        for name in (_FEATURES, _INFO):  # the second says that all is there
            folder.write(name, (pathlib.Path(temporary) / name).read_bytes())
