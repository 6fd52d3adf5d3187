"""Train one stage: python -m launch.train CONFIG --output RUN [--model MODEL] [field=value ...]

The same command starts a run and resumes it. If RUN holds a run with the same configuration, training resumes from its
latest whole checkpoint and produces the same losses as an uninterrupted run. SIGTERM ends the run after the current
step with a checkpoint and exit code 0; a second SIGTERM ends it at once.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING

from launch import cli, encoder_cache, presets

if TYPE_CHECKING:
    from salmonn_jax.configs.preset import Preset
    from salmonn_jax.paths import Path


def main() -> None:
    """Parses the command line and trains."""
    parser = cli.make_parser("train", __doc__)
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, e.g. stage1")
    parser.add_argument("--output", type=cli.output_path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--model",
        type=cli.path,
        help="model or run directory to start from (default: the configuration's model, with random weights)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="configuration overrides, e.g. num_train_steps=100"
    )
    parser.add_argument(
        "--watchdog-minutes",
        type=cli.positive_float,
        default=30.0,
        help="print all stacks and exit if no step ends within this time (default: %(default)g)",
    )
    parser.add_argument(
        "--sigterm-exit-code",
        type=int,
        default=0,
        metavar="CODE",
        help="exit code of an unfinished run that SIGTERM ended; not 0 for schedulers that restart only failed jobs",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every field with its value and meaning, and exit"
    )
    arguments = parser.parse_intermixed_args()
    preset = presets.resolve_preset(arguments.config, arguments.overrides, arguments.model)
    if arguments.print_config:
        presets.print_config(preset)
        return
    if arguments.output is None:
        parser.error("the following arguments are required: --output")
    preset = presets.require_model(preset)
    cli.start_jax()
    is_finished = train(preset, arguments.output, arguments.model, watchdog_minutes=arguments.watchdog_minutes)
    if not is_finished:
        sys.exit(arguments.sigterm_exit_code)


def train(preset: Preset, output: Path, model_dir: Path | None, *, watchdog_minutes: float = 30.0) -> bool:
    """Trains until the last step of the recipe or SIGTERM; resumes if `output` already holds this run.

    Args:
      preset: name, recipe and model of the run.
      output: run directory.
      model_dir: model or run directory with the initial weights; None for random weights.
      watchdog_minutes: the program prints the stacks of all threads and exits if no step ends within this time.

    Returns:
      Whether the run is finished; False if SIGTERM ended it.

    Raises:
      UserError: the recipe, the data or the model do not fit together, or `output` holds another run.
    """
    import jax

    from data_pipelines import corpora
    from data_pipelines.from_config import audio_rules, find_tokenizer_dir, make_training_data
    from data_pipelines.rejection_log import RejectionLog
    from data_pipelines.stream.training_data import placed_examples
    from salmonn_jax import distributed, sharding
    from salmonn_jax.models.parameters import describe_trainable
    from salmonn_jax.preemption import StopRequest
    from salmonn_jax.tokenizer import load_tokenizer
    from salmonn_jax.training import run_directory
    from salmonn_jax.training.checkpoint import Checkpoints, abstract_like
    from salmonn_jax.training.loop import DivergenceError
    from salmonn_jax.training.loop import train as train_loop
    from salmonn_jax.training.metric_writer import open_metric_writer
    from salmonn_jax.training.step import init_train_state
    from salmonn_jax.training.telemetry import Telemetry

    recipe, model = preset.recipe, preset.model
    mesh = sharding.make_mesh(recipe.mesh)
    sharding.check_batch(recipe.data, mesh, recipe.gradient_accumulation_steps)
    corpus = corpora.open_corpus(recipe.data.corpus, recipe.data.data_dir, audio_rules(model, recipe.data))
    tokenizer_dir = find_tokenizer_dir(corpus, model_dir)
    make_data = functools.partial(
        make_training_data,
        corpus,
        load_tokenizer(tokenizer_dir),
        model,
        recipe.data,
        seed=recipe.seed,
        streams=sharding.local_streams(mesh, recipe.data.streams),
    )
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(contextlib.closing(make_data()))
        # Takes one batch and rewinds, so that errors in the data or the batch sizes are found before the run directory
        # is created.
        initial_data_state = data.get_state()
        next(data)
        data.set_state(initial_data_state)
        if jax.process_count() > 1:
            distributed.preflight(output)
        run = run_directory.open_run(recipe, model, output, model_dir, tokenizer_dir=tokenizer_dir, mesh=mesh)
        if jax.process_index() == 0:
            print(describe_trainable(run.structure.shapes, recipe.trainable), file=sys.stderr)
        if recipe.data.encoder_cache:
            frame_store = encoder_cache.open_store(recipe, corpus, run, mesh)
            run = run.without_encoders()
            data.close()
            data = stack.enter_context(contextlib.closing(make_data(frame_store=frame_store)))
        rejection_log = RejectionLog(output / f"rejected-{jax.process_index()}.jsonl")
        data.on_reject(rejection_log.add)
        init_state = jax.jit(
            lambda trainable: init_train_state(recipe, trainable), out_shardings=sharding.replicated(mesh)
        )
        state = init_state(run.trainable)
        checkpoints = Checkpoints(output, max_to_keep=recipe.max_to_keep)
        num_examples: dict[str, int] = {}
        if checkpoints.latest_step() is not None:
            state, data_state = checkpoints.restore(abstract_like(state))
            data.set_state(data_state)
            num_examples = placed_examples(data_state)
            print(
                f"{output}: resuming from step {checkpoints.latest_step()} of {recipe.num_train_steps}", file=sys.stderr
            )
        metric_writer = open_metric_writer(
            output,
            name=preset.name,
            start_step=int(state.step),
            num_train_steps=recipe.num_train_steps,
            program_start=cli.START_TIME,
        )
        watchdog = distributed.Watchdog(60 * watchdog_minutes, "waiting for a step to end")
        try:
            with distributed.exit_on_peer_failure(), StopRequest() as stop_request:
                num_steps = train_loop(
                    recipe,
                    run.structure,
                    run.frozen,
                    state,
                    data,
                    mesh,
                    checkpoints,
                    Telemetry(recipe.data.source_names, num_examples),
                    metric_writer,
                    watchdog,
                    stop_request,
                )
        except DivergenceError:  # All processes raise it at the same step, so each can wait for the checkpoint.
            checkpoints.close()
            raise
        finally:
            watchdog.stop()
            metric_writer.close()
            rejection_log.close()
    is_finished = num_steps == recipe.num_train_steps
    if not is_finished and jax.process_index() == 0:
        print(
            f"{output}: SIGTERM ended the run after step {num_steps} of {recipe.num_train_steps}, which is saved; the "
            "same command resumes it",
            file=sys.stderr,
        )
    return is_finished


if __name__ == "__main__":
    cli.run(main)
