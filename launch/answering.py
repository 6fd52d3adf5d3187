"""Options and checks of the commands that answer all rows of data sets: `evaluate` and `prepare self-stories`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from launch import cli

if TYPE_CHECKING:
    from data_pipelines.evaluation.rows import EvaluationRows, NamedSource
    from salmonn_jax.paths import Path


def add_source_options(
    parser: argparse.ArgumentParser, default_splits: str, path: Callable[[str], object] = cli.path
) -> None:
    """Adds the options that name the model and the data sets.

    Args:
      parser: parser of the entry point.
      default_splits: splits without --splits, for the help.
      path: type of options that read a directory or file.
    """
    parser.add_argument("--model", required=True, type=path, help="model or run directory")
    parser.add_argument(
        "--manifest",
        action="append",
        type=path,
        metavar="FILE|DIR",
        help="manifest (.jsonl), annotation file of the original (.json), data set of launch.prepare, or directory of "
        "these; may be given several times",
    )
    parser.add_argument("--corpus", help="instead of --manifest: name of a corpus (default: minicorpus)")
    parser.add_argument("--data-dir", type=path, help="directory of the corpus (default: .cache/minicorpus)")
    parser.add_argument(
        "--splits",
        nargs="+",
        help=f"splits of a corpus or directory (default: {default_splits})",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say on what, how far and how strictly the rows are answered."""
    parser.add_argument(
        "--mesh",
        nargs="+",
        default=[],
        metavar="AXIS=SIZE",
        help="division of the devices of each host, such as tensor=4 (default: all on the axis data)",
    )
    parser.add_argument("--batch-size", type=cli.positive_int, help="rows per batch and host (default: from memory)")
    parser.add_argument(
        "--max-failures",
        type=cli.non_negative_int,
        metavar="N",
        help="end after more than N predictions with an error (default: 10 %% of them, at least 10); with it, missing "
        "files are errors of this kind",
    )
    parser.add_argument(
        "--no-preflight",
        dest="preflight",
        action="store_false",
        help="go on although the first 16 answers are all empty or do not depend on the clip",
    )
    parser.add_argument(
        "--sigterm-exit-code",
        type=int,
        default=0,
        metavar="CODE",
        help="exit code of an unfinished evaluation that SIGTERM ended (default: %(default)s)",
    )


def parse_mesh(words: Sequence[str]) -> dict[str, int]:
    """Returns the sizes in `AXIS=SIZE` words.

    Raises:
      UserError: a word has another form, a size is below 1, or an axis is given twice.
    """
    from salmonn_jax.errors import UserError

    sizes = {}
    for word in words:
        axis, equals, size = word.partition("=")
        if not equals or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh {word}: must be AXIS=SIZE with a size of at least 1, such as tensor=4")
        if axis in sizes:
            raise UserError(f"--mesh {word}: the axis {axis} is given twice; omit one")
        sizes[axis] = int(size)
    return sizes


def open_sources(
    manifests: Sequence[Path] | None,
    corpus: str | None,
    data_dir: Path | None,
    splits: Sequence[str] | None,
    channels: str,
) -> tuple[list[NamedSource], Sequence[str]]:
    """Opens the data sets of the command line.

    Args:
      manifests: manifests and directories; None for a corpus.
      corpus: name of a corpus; None for the mini-corpus if there are no manifests.
      data_dir: directory of the corpus; None for that of the quickstart.
      splits: splits of a corpus or directory; None for the default ones.
      channels: channel of the recordings that is used.

    Returns:
      The data sets, and notes about them for the report.

    Raises:
      UserError: a data set does not exist, or both manifests and a corpus are given.
    """
    from data_pipelines.evaluation import open as data_sets
    from data_pipelines.sources.audio import AudioRules
    from salmonn_jax.errors import UserError
    from salmonn_jax.paths import as_path

    # The data sets return whole clips; the model applies `too_long`.
    rules = AudioRules(channels=channels, too_long="chunk")
    if manifests:
        if corpus or data_dir:
            raise UserError(f"{'--corpus' if corpus else '--data-dir'} is not used with --manifest; omit it")
        return data_sets.open_manifests(manifests, splits, rules), ()
    data_dir = as_path(".cache/minicorpus") if data_dir is None else data_dir
    return data_sets.open_corpus(corpus or "minicorpus", data_dir, splits or data_sets.DEFAULT_SPLITS, rules)


def check_rows(rows: EvaluationRows, num_conditions: int, max_failures: int | None) -> int:
    """Reports rows that cannot be used and files that do not exist, before the model is loaded.

    Args:
      rows: all rows.
      num_conditions: number of conditions under which a row is predicted.
      max_failures: option of the command line; None if it is not given.

    Returns:
      The number of predictions with an error after which the evaluation ends.

    Raises:
      UserError: files are missing and `max_failures` does not allow it, or too many rows cannot be used.
    """
    from salmonn_jax import distributed
    from salmonn_jax.errors import UserError

    limit = max(10, len(rows) * num_conditions // 10) if max_failures is None else max_failures
    missing, example = rows.missing_files(distributed.process_shard())
    num_missing = int(distributed.sum_over_processes(np.array([missing]))[0])
    if num_missing:
        what = f"missing audio files: {num_missing}{f', the first is {example}' if example else ''}"
        if max_failures is None or num_missing > max_failures:
            raise UserError(f"{what}; correct the manifest, or accept them as errors with --max-failures {num_missing}")
        print(f"warning: {what}", file=sys.stderr)
    if rows.rejected and distributed.is_main_process():
        for row in rows.rejected[:10]:
            print(f"warning: {row.place} cannot be used: {row.reason}", file=sys.stderr)
        print(f"warning: {len(rows.rejected)} rows cannot be used and have no prediction", file=sys.stderr)
    if len(rows.rejected) > limit:
        first = rows.rejected[0]
        raise UserError(
            f"{len(rows.rejected)} rows cannot be used, more than --max-failures {limit}; the first is {first.place}: "
            f"{first.reason}"
        )
    return limit
