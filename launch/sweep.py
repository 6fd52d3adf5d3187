"""The command `sweep` of `launch.forgetting`: evaluations of one model with several LoRA multipliers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from launch import answering, cli

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from salmonn_jax import Model
    from salmonn_jax.model_directory import ModelFiles
    from salmonn_jax.paths import Path

DESCRIPTION = """Evaluates a model with several LoRA multipliers, of which 0 leaves the adapters out. The model is
loaded once; all multipliers but 0 share compiled programs. Writes DIR/multiplier-M/ for each, as `launch.evaluate`
does, and DIR/forgetting.yml, whose report compares them. The same command resumes.

  python -m launch.forgetting sweep --model RUN --manifest text.jsonl --manifest speech.jsonl --output DIR
  python -m launch.forgetting report DIR/forgetting.yml --output DIR/report
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `sweep`."""
    parser = subparsers.add_parser(
        "sweep",
        help="evaluate a model with several LoRA multipliers",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    answering.add_source_options(parser, "test unheard; all but train of a data set")
    parser.add_argument("--output", required=True, type=cli.output_path, metavar="DIR", help="directory that is made")
    parser.add_argument(
        "--multipliers",
        nargs="+",
        type=cli.lora_multiplier,
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        metavar="M",
        help="multipliers; the first is what the others are compared with (default: 0 0.25 0.5 0.75 1)",
    )
    answering.add_run_options(parser)
    cli.add_audio_options(parser, "error", "truncate", "chunk", "chunk_answers")
    cli.add_generation_options(parser)


def run(options: argparse.Namespace) -> None:
    """Evaluates every multiplier and writes forgetting.yml."""
    import yaml

    from launch.evaluate import Options, evaluate
    from salmonn_jax.errors import UserError
    from salmonn_jax.files import atomic_write

    config = cli.pop_generation_config(vars(options))
    if config.lora_multiplier != 1.0:
        raise UserError("--lora-multiplier has no effect in a sweep; use --multipliers")
    multipliers = list(dict.fromkeys(options.multipliers))
    cli.start_jax()
    sources, notes = answering.open_sources(
        options.manifest, options.corpus, options.data_dir, options.splits, options.channels
    )
    chosen = Options(
        mesh=answering.parse_mesh(options.mesh),
        batch_size=options.batch_size,
        max_failures=options.max_failures,
        too_long=options.too_long,
        channels=options.channels,
        preflight=options.preflight,
    )
    load, num_failures = _LoadOnce(), 0
    for multiplier in multipliers:
        print(f"multiplier {multiplier:g}", flush=True)
        found = evaluate(
            options.model,
            options.output / directory_name(multiplier),
            sources,
            dataclasses.replace(config, lora_multiplier=multiplier),
            chosen,
            notes=notes,
            load=load,
        )
        if found is None:
            sys.exit(options.sigterm_exit_code)
        num_failures += found
    from salmonn_jax import distributed

    if distributed.is_main_process():
        first = f"multiplier {multipliers[0]:g}"
        stages = [
            {"name": f"multiplier {m:g}", "evaluations": [directory_name(m)]} | ({"after": first} if i else {})
            for i, m in enumerate(multipliers)
        ]
        with atomic_write(options.output / "forgetting.yml") as unfinished:
            unfinished.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
        print(f"stages: {options.output / 'forgetting.yml'}")
    if num_failures:
        sys.exit(2)


def directory_name(multiplier: float) -> str:
    """Returns the name of the directory of an evaluation with a multiplier."""
    return f"multiplier-{multiplier:g}"


class _LoadOnce:
    """Loads a model at the first call and returns it at later ones."""

    def __init__(self) -> None:
        self._model: Model | None = None

    def __call__(self, files: ModelFiles, directory: Path, mesh: Mesh) -> Model:
        from salmonn_jax.evaluation import settings

        if self._model is None:
            self._model = settings.load_evaluated(files, directory, mesh)
        return self._model
