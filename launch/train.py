"""Train one stage: python -m launch.train CONFIG --output RUN [--model MODEL] [field=value ...]

The same command starts a run and goes on with it: where RUN holds a run of this very configuration, training resumes
from its latest checkpoint and yields the losses an uninterrupted run would have.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from typing import Any

from launch import cli


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, such as mini_stage1")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="RUN", help="directory of the run")
    parser.add_argument(
        "--model", type=pathlib.Path, help="model or run directory to start from; default: random weights"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="changes to the configuration, such as num_train_steps=100"
    )
    parser.add_argument(
        "--watchdog-minutes",
        type=float,
        default=30.0,
        help="end with every thread's stack if no step ends for so long (default: %(default)g)",
    )
    arguments = parser.parse_intermixed_args()
    cli.start_jax()
    config = resolve_config(arguments.config, arguments.overrides)
    train(config, arguments.output, arguments.model, watchdog_minutes=arguments.watchdog_minutes)


def resolve_config(name: str, overrides: list[str]):
    """The named configuration with the command line's changes."""
    from salmonn_jax import config as configuration
    from salmonn_jax.configs import get_config
    from salmonn_jax.errors import UserError

    config = get_config(name)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not a change to the configuration; write field=value")
        config = configuration.apply_override(config, path, text)
    return config


def train(config: Any, output: pathlib.Path, model: pathlib.Path | None, *, watchdog_minutes: float = 30.0) -> None:
    """Prepares a run directory, or takes up the one that is there, and trains to the end."""
    import jax

    from data_pipelines import corpora
    from data_pipelines.from_config import audio_rules, find_tokenizer_dir, make_training_data
    from data_pipelines.rejection_log import RejectionLog
    from salmonn_jax import distributed, sharding
    from salmonn_jax.tokenizer import load_tokenizer
    from salmonn_jax.training import run_directory
    from salmonn_jax.training.checkpoint import Checkpoints, abstract_like
    from salmonn_jax.training.loop import train as train_loop
    from salmonn_jax.training.metric_writer import open_metric_writer
    from salmonn_jax.training.step import init_train_state

    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data, mesh)
    corpus = corpora.open_corpus(config.data.corpus, config.data.data_dir, audio_rules(config.model, config.data))
    tokenizer = find_tokenizer_dir(corpus, model)
    data = make_training_data(
        corpus,
        load_tokenizer(tokenizer),
        config.model,
        config.data,
        seed=config.seed,
        streams=sharding.local_streams(mesh, config.data.streams),
    )
    with contextlib.closing(data):
        start = data.get_state()
        next(data)  # what does not fit is told before anything is written
        data.set_state(start)
        if jax.process_count() > 1:
            distributed.preflight(output)
        run = run_directory.open_run(config, output, model, tokenizer_dir=tokenizer, mesh=mesh)
        data.on_reject(RejectionLog(output / f"rejected-{jax.process_index()}.jsonl").add)
        everywhere = sharding.replicated(mesh)
        state = jax.jit(lambda t: init_train_state(config, t), out_shardings=everywhere)(run.trainable)
        checkpoints = Checkpoints(output, max_to_keep=config.max_to_keep)
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(abstract_like(state), data)
            print(
                f"{output}: going on from step {checkpoints.latest_step()} of {config.num_train_steps}", file=sys.stderr
            )
        telemetry = open_metric_writer(
            output,
            name=config.name,
            start_step=int(state.step),
            num_train_steps=config.num_train_steps,
            program_start=cli.START_TIME,
        )
        watchdog = distributed.Watchdog(60 * watchdog_minutes, "waiting for a step to end")
        try:
            with distributed.exit_on_peer_failure():
                train_loop(config, run.structure, run.frozen, state, data, mesh, checkpoints, telemetry, watchdog)
        finally:
            watchdog.stop()
            telemetry.close()


if __name__ == "__main__":
    cli.run(main)
