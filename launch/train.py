"""Train one stage: python -m launch.train CONFIG --output RUN [--model MODEL] [field=value ...]

The same command starts a run and resumes it. If RUN holds a run with the same configuration, training resumes from its
latest checkpoint and produces the same losses as an uninterrupted run.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from typing import TYPE_CHECKING

from launch import cli

if TYPE_CHECKING:
    from salmonn_jax.config import RunConfig


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, e.g. mini_stage1")
    parser.add_argument("--output", type=pathlib.Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--model", type=pathlib.Path, help="model or run directory to start from (default: random weights)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="configuration overrides, e.g. num_train_steps=100"
    )
    parser.add_argument(
        "--watchdog-minutes",
        type=float,
        default=30.0,
        help="print all stacks and exit if no step ends within this time (default: %(default)g)",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every field with its value and meaning, and exit"
    )
    arguments = parser.parse_intermixed_args()
    config = resolve_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print_config(config)
        return
    if arguments.output is None:
        parser.error("the following arguments are required: --output")
    cli.start_jax()
    train(config, arguments.output, arguments.model, watchdog_minutes=arguments.watchdog_minutes)


def resolve_config(name: str, overrides: list[str]) -> RunConfig:
    """Returns the named configuration with the overrides applied.

    Raises:
      UserError: the configuration or a field is unknown, or a value is not valid.
    """
    from salmonn_jax.config import apply_overrides
    from salmonn_jax.configs import get_config

    return apply_overrides(get_config(name), overrides)


def print_config(config: RunConfig) -> None:
    """Prints the path, value and meaning of every field. Fields of absent parts are left out."""
    import dataclasses
    import json

    from salmonn_jax.config import describe_fields

    fields = {"": config}
    for path, description in describe_fields(type(config)):
        parent, _, name = path.rpartition(".")
        if fields.get(parent) is None:
            continue
        value = fields[path] = getattr(fields[parent], name)
        if not dataclasses.is_dataclass(value):
            print(f"{path} = {json.dumps(value)}  # {description}")


def train(
    config: RunConfig, output: pathlib.Path, model: pathlib.Path | None, *, watchdog_minutes: float = 30.0
) -> None:
    """Trains until `config.num_train_steps`; resumes if `output` already holds this run.

    Args:
      config: the training configuration.
      output: run directory.
      model: model or run directory with the initial weights; None for random weights.
      watchdog_minutes: the program prints the stacks of all threads and exits if no step ends within this time.

    Raises:
      UserError: the configuration, the data or the model do not fit together, or `output` holds another run.
    """
    import jax

    from data_pipelines import corpora
    from data_pipelines.from_config import audio_rules, find_tokenizer_dir, make_training_data
    from data_pipelines.rejection_log import RejectionLog
    from salmonn_jax import distributed, sharding
    from salmonn_jax.models.parameters import describe_trainable
    from salmonn_jax.tokenizer import load_tokenizer
    from salmonn_jax.training import run_directory
    from salmonn_jax.training.checkpoint import Checkpoints, abstract_like
    from salmonn_jax.training.loop import DivergenceError
    from salmonn_jax.training.loop import train as train_loop
    from salmonn_jax.training.metric_writer import open_metric_writer
    from salmonn_jax.training.step import init_train_state

    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data, mesh)
    corpus = corpora.open_corpus(config.data.corpus, config.data.data_dir, audio_rules(config.model, config.data))
    tokenizer_dir = find_tokenizer_dir(corpus, model)
    data = make_training_data(
        corpus,
        load_tokenizer(tokenizer_dir),
        config.model,
        config.data,
        seed=config.seed,
        streams=sharding.local_streams(mesh, config.data.streams),
    )
    with contextlib.closing(data):
        # Takes one batch and rewinds, so that errors in the data or the batch sizes are found before the run directory
        # is created.
        initial_data_state = data.get_state()
        next(data)
        data.set_state(initial_data_state)
        if jax.process_count() > 1:
            distributed.preflight(output)
        run = run_directory.open_run(config, output, model, tokenizer_dir=tokenizer_dir, mesh=mesh)
        if jax.process_index() == 0:
            print(describe_trainable(run.structure.shapes, config.trainable), file=sys.stderr)
        data.on_reject(RejectionLog(output / f"rejected-{jax.process_index()}.jsonl").add)
        init_state = jax.jit(
            lambda trainable: init_train_state(config, trainable), out_shardings=sharding.replicated(mesh)
        )
        state = init_state(run.trainable)
        checkpoints = Checkpoints(output, max_to_keep=config.max_to_keep)
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(abstract_like(state), data)
            print(
                f"{output}: resuming from step {checkpoints.latest_step()} of {config.num_train_steps}", file=sys.stderr
            )
        metric_writer = open_metric_writer(
            output,
            name=config.name,
            start_step=int(state.step),
            num_train_steps=config.num_train_steps,
            program_start=cli.START_TIME,
        )
        watchdog = distributed.Watchdog(60 * watchdog_minutes, "waiting for a step to end")
        try:
            with distributed.exit_on_peer_failure():
                train_loop(config, run.structure, run.frozen, state, data, mesh, checkpoints, metric_writer, watchdog)
        except DivergenceError:  # All processes raise it at the same step, so each can wait for the checkpoint.
            checkpoints.close()
            raise
        finally:
            watchdog.stop()
            metric_writer.close()


if __name__ == "__main__":
    cli.run(main)
