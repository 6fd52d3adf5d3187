"""Filling of the store of encoder frames that `data.encoder_cache` names, before the first step of a run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tqdm

if TYPE_CHECKING:
    import jax

    from data_pipelines.corpora import Corpus
    from data_pipelines.encoder_cache.store import FrameStore
    from data_pipelines.encoder_cache.windows import KeyedWindow, SourceWindows
    from salmonn_jax.config import ModelConfig, Recipe
    from salmonn_jax.training.encoder_frames import FrameEncoder
    from salmonn_jax.training.run_directory import RunWeights

FILL_TIMEOUT_SECONDS = 7 * 24 * 3600  # a process waits this long for the others to finish their shares
TIMED_READS = 64  # windows that are read to measure the time of a read


def open_store(recipe: Recipe, corpus: Corpus, run: RunWeights, mesh: jax.sharding.Mesh) -> FrameStore:
    """Opens the store of `data.encoder_cache`, after the windows that it lacks are encoded and added to it.

    These are the windows of the training data and, if the run has evaluations, of the split of the held-out examples.

    Every process calls it, and encodes an equal share of the examples on its own devices.

    Args:
      recipe: recipe of the run.
      corpus: the sources.
      run: weights of the run, with those of the encoders.
      mesh: device mesh.

    Raises:
      UserError: the store holds frames of another encoder, or cannot be written to.
    """
    from data_pipelines.encoder_cache.store import DESCRIPTION, FrameStore, check_description
    from data_pipelines.encoder_cache.windows import CompleteSources
    from data_pipelines.from_config import source_windows
    from salmonn_jax import distributed, paths
    from salmonn_jax.errors import UserError
    from salmonn_jax.training.encoder_frames import FrameEncoder, stored_frames_shape

    data, model = recipe.data, run.structure.config
    location, frames_shape = paths.absolute(paths.as_path(data.encoder_cache)), stored_frames_shape(model, recipe)
    encoder = FrameEncoder(run.structure, run.frozen, recipe, mesh)
    if distributed.is_main_process():
        check_description(location, encoder.description)
    distributed.barrier("the encoder cache is described")
    if not (location / DESCRIPTION).is_file():
        raise UserError(f"data.encoder_cache={location} must be a directory or URL that all processes share")
    store = FrameStore(location, encoder.description, frames_shape)
    corpus_identity = {"corpus": data.corpus, "data_dir": str(paths.absolute(paths.as_path(data.data_dir)))}
    complete = CompleteSources(store, corpus_identity)
    splits = {"train", data.eval_split} if recipe.eval_every else {"train"}
    sources = list(source_windows(corpus, model, data, sorted(splits)))
    counts = [_count_if_complete(complete, source) for source in sources]
    incomplete = [source for source, count in zip(sources, counts, strict=True) if count is None]
    filled = _fill(incomplete, store, encoder, model)
    distributed.barrier("the encoder cache is filled", FILL_TIMEOUT_SECONDS)
    if incomplete:
        store = FrameStore(location, encoder.description, frames_shape)
    found = distributed.sum_over_processes(np.asarray([filled.num_encoded, *filled.num_windows], np.int32))
    if distributed.is_main_process():
        complete = CompleteSources(store, corpus_identity)
        for source, num_windows in zip(incomplete, found[1:].tolist(), strict=True):
            complete.add(source, num_windows)
        num_windows = sum(count for count in counts if count is not None) + int(found[1:].sum())
        for line in _report_lines(store, filled, num_windows, int(found[0]), data.clips):
            print(line, file=sys.stderr)
    return store


def _count_if_complete(complete, source: SourceWindows) -> int | None:
    """Returns the number of windows of a source, if process 0 finds that the store has them all."""
    from salmonn_jax import distributed

    count = complete.num_windows(source) if distributed.is_main_process() else None
    agreed = distributed.broadcast_from_main(-1 if count is None else count)
    return None if agreed < 0 else agreed


@dataclasses.dataclass
class _Filled:
    """Counts and durations of the share of this process in filling a store."""

    num_windows: list[int]  # of each source
    num_encoded: int = 0
    encoder_seconds: float = 0.0
    seconds: float = 0.0  # with reading, compilation and writing


def _fill(sources: Sequence[SourceWindows], store: FrameStore, encoder: FrameEncoder, model: ModelConfig) -> _Filled:
    """Encodes the windows in the share of this process that the store lacks, and adds them to it."""
    from data_pipelines.encoder_cache.writer import FrameWriter
    from salmonn_jax import distributed

    start, filled = time.monotonic(), _Filled([0] * len(sources))
    shard = distributed.process_shard()
    with contextlib.ExitStack() as stack:
        total = sum(len(range(shard[0], len(source), shard[1])) for source in sources)
        bar = stack.enter_context(
            tqdm.tqdm(total=total, unit="example", desc="encoder cache", disable=not total or shard[0] > 0)
        )
        writer = stack.enter_context(FrameWriter(store))
        background = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))

        def write(batch: list[KeyedWindow], frames: np.ndarray) -> None:
            for window, frames_of_window in zip(batch, frames, strict=True):
                writer.add(window.key, frames_of_window[: model.num_valid_frames(len(window.samples))])

        missing, writing = _missing_windows(sources, store, shard, filled.num_windows, bar), None
        while batch := list(itertools.islice(missing, encoder.batch_size)):
            if not filled.num_encoded:
                encoder.compile()
            encoder_start = time.monotonic()
            frames = encoder.encode([window.samples for window in batch])
            filled.encoder_seconds += time.monotonic() - encoder_start
            filled.num_encoded += len(batch)
            if writing is not None:
                writing.result()  # raises its error, and limits the windows in memory
            writing = background.submit(write, batch, frames)
        if writing is not None:
            writing.result()
    filled.seconds = time.monotonic() - start
    return filled


def _missing_windows(
    sources: Sequence[SourceWindows],
    store: FrameStore,
    shard: tuple[int, int],
    num_windows: list[int],
    bar: tqdm.tqdm,
) -> Iterator[KeyedWindow]:
    """Yields each window of a share of the sources that the store lacks once, and counts the windows of each source."""
    seen = set()
    for index, source in enumerate(sources):
        for windows in source.read(shard):
            num_windows[index] += len(windows)
            for window in windows:
                if window.key not in seen and store.find(window.key) is None:
                    seen.add(window.key)
                    yield window
            bar.update()


def _report_lines(store: FrameStore, filled: _Filled, num_windows: int, num_encoded: int, clips: int) -> Iterator[str]:
    """Yields lines on the size of a store, and on when it pays for itself if it was filled now.

    Args:
      store: the filled store.
      filled: what this process did.
      num_windows: number of windows of the data.
      num_encoded: number of windows that all processes encoded.
      clips: clip slots of a step.
    """
    from salmonn_jax import distributed

    yield (
        f"encoder cache {store.location}: {num_windows:,} encoder windows of the data, {num_encoded:,} encoded now; it "
        f"holds {len(store):,}, {store.size / max(len(store), 1) / 1e3:,.1f} kB each, {store.size / 1e6:,.1f} MB in "
        f"all; its index takes {store.index_bytes / 1e6:,.1f} MB of memory"
    )
    if not filled.num_encoded or not clips:
        return
    records = np.random.default_rng(0).permutation(len(store))[:TIMED_READS].tolist()
    start = time.monotonic()
    store.read(records)
    read_seconds = (time.monotonic() - start) / len(records)
    encoder_seconds = filled.encoder_seconds / filled.num_encoded
    saved_seconds = (encoder_seconds - read_seconds) * clips / distributed.process_shard()[1]
    took = (
        f"encoder cache: filled in {filled.seconds:.1f} s; the encoders take {encoder_seconds * 1e3:.1f} ms a window, "
        f"reading {read_seconds * 1e3:.1f} ms"
    )
    if saved_seconds <= 0:
        yield f"{took}: it does not pay for itself"
        return
    steps = filled.seconds / saved_seconds
    yield (
        f"{took}: a step of {clips} windows saves up to {saved_seconds:.2f} s, so it pays for itself after "
        f"{steps:,.0f} steps ({steps * clips / num_windows:.1f} epochs)"
    )
