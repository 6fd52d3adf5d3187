"""Train one stage: python -m launch.train CONFIG --output RUN [--model MODEL] [field=value ...]

The same command starts a run and resumes it. If RUN holds a run with the same configuration, training resumes from its
latest whole checkpoint and produces the same losses as an uninterrupted run. SIGTERM ends the run after the current
step with a checkpoint and exit code 0; a second SIGTERM ends it at once.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from launch import cli, encoder_cache, presets

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from data_pipelines.corpora import Corpus
    from data_pipelines.encoder_cache.store import FrameStore
    from data_pipelines.stream.held_out import HeldOutData
    from data_pipelines.stream.training_data import TrainingData
    from salmonn_jax.config import Recipe
    from salmonn_jax.configs.preset import Preset
    from salmonn_jax.paths import Path
    from salmonn_jax.training.loop import LoopEnd


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
    from data_pipelines.from_config import audio_rules, find_tokenizer_dir
    from data_pipelines.rejection_log import RejectionLog
    from data_pipelines.stream.training_data import placed_examples
    from salmonn_jax import distributed, sharding
    from salmonn_jax.model_directory import config_dir
    from salmonn_jax.models.parameters import describe_trainable
    from salmonn_jax.preemption import StopRequest
    from salmonn_jax.training import run_directory
    from salmonn_jax.training.checkpoint import Checkpoints, abstract_like
    from salmonn_jax.training.held_out import HeldOutEvaluation, check_held_out
    from salmonn_jax.training.loop import DivergenceError
    from salmonn_jax.training.loop import train as train_loop
    from salmonn_jax.training.metric_writer import open_metric_writer
    from salmonn_jax.training.step import init_train_state
    from salmonn_jax.training.telemetry import Telemetry

    recipe = preset.recipe
    mesh = sharding.make_mesh(recipe.mesh)
    sharding.check_batch(recipe.data, mesh, recipe.gradient_accumulation_steps)
    rules = audio_rules(preset.model, recipe.data)
    corpus = corpora.open_corpus(recipe.data.corpus, recipe.data.data_dir, rules)
    tokenizer_dir = find_tokenizer_dir(corpus, model_dir and config_dir(model_dir))
    is_main_process = distributed.is_main_process()
    with contextlib.ExitStack() as stack:
        data, held_out = _open_data(preset, corpus, tokenizer_dir, mesh, stack)
        # Takes one batch and rewinds, so that errors in the data or the batch sizes are found before the run directory
        # is created.
        initial_data_state = data.get_state()
        next(data)
        data.set_state(initial_data_state)
        if jax.process_count() > 1:
            distributed.preflight(output)
        if held_out is not None:
            summary = check_held_out(recipe, held_out)
            if is_main_process:
                print(summary, file=sys.stderr)
        run = run_directory.open_run(recipe, preset.model, output, model_dir, tokenizer_dir=tokenizer_dir, mesh=mesh)
        if is_main_process:
            print(describe_trainable(run.structure.shapes, recipe.trainable), file=sys.stderr)
        if recipe.data.encoder_cache:
            frame_store = encoder_cache.open_store(recipe, corpus, run, mesh)
            run = run.without_encoders()
            stack.close()
            data, held_out = _open_data(preset, corpus, tokenizer_dir, mesh, stack, frame_store)
        rejection_log = RejectionLog(output / f"rejected-{jax.process_index()}.jsonl")
        stack.callback(rejection_log.close)
        data.on_reject(rejection_log.add)
        init_state = jax.jit(
            lambda trainable: init_train_state(recipe, trainable), out_shardings=sharding.replicated(mesh)
        )
        state = init_state(run.trainable)
        checkpoints = Checkpoints(output, max_to_keep=recipe.max_to_keep, keep_best=recipe.keep_best)
        start_step, num_examples = checkpoints.latest_step(), {}
        if start_step is not None:
            state, data_state = checkpoints.restore(abstract_like(state))
            data.set_state(data_state)
            num_examples = placed_examples(data_state)
            print(f"{output}: resuming from step {start_step} of {recipe.num_train_steps}", file=sys.stderr)
        metric_writer = open_metric_writer(
            output,
            name=preset.name,
            start_step=start_step or 0,
            is_evaluated=start_step is not None and checkpoints.eval_values(start_step) is not None,
            num_train_steps=recipe.num_train_steps,
            program_start=cli.START_TIME,
        )
        stack.callback(metric_writer.close)
        watchdog = distributed.Watchdog(60 * watchdog_minutes, "waiting for a step to end")
        stack.callback(watchdog.stop)
        try:
            with distributed.exit_on_peer_failure(), StopRequest() as stop_request:
                end = train_loop(
                    recipe,
                    run.structure,
                    run.frozen,
                    state,
                    data,
                    mesh,
                    held_out and HeldOutEvaluation(recipe, run.structure, mesh, held_out),
                    checkpoints,
                    Telemetry(recipe.data.source_names, num_examples),
                    metric_writer,
                    watchdog,
                    stop_request,
                )
        except DivergenceError:  # All processes raise it at the same step, so each can wait for the checkpoint.
            checkpoints.close()
            raise
    if is_main_process:
        _report_end(output, recipe, end, checkpoints.best())
    return end.is_finished


def _open_data(
    preset: Preset,
    corpus: Corpus,
    tokenizer_dir: Path,
    mesh: Mesh,
    stack: contextlib.ExitStack,
    frame_store: FrameStore | None = None,
) -> tuple[TrainingData, HeldOutData | None]:
    """Opens what this process reads of the data of a run.

    Args:
      preset: recipe and model of the run.
      corpus: the sources.
      tokenizer_dir: directory of the tokenizer.
      mesh: device mesh, which decides what this process reads.
      stack: closes the data.
      frame_store: filled store of `data.encoder_cache`, if the run has one.

    Returns:
      The training data, and the held-out data, all of which is read once; None for a run without evaluations.
    """
    from data_pipelines.from_config import make_held_out_data, make_training_data
    from salmonn_jax import sharding
    from salmonn_jax.tokenizer import load_tokenizer

    recipe = preset.recipe
    arguments = (corpus, load_tokenizer(tokenizer_dir), preset.model, recipe.data)
    streams = sharding.local_streams(mesh, recipe.data.streams)
    options = {"seed": recipe.seed, "streams": streams, "frame_store": frame_store}
    data = stack.enter_context(contextlib.closing(make_training_data(*arguments, **options)))
    if not recipe.eval_every:
        return data, None
    return data, stack.enter_context(contextlib.closing(make_held_out_data(*arguments, **options)))


def _report_end(output: Path, recipe: Recipe, end: LoopEnd, best: tuple[int, float] | None) -> None:
    """Prints how a run has ended and where its best checkpoint is, and writes its page."""
    from salmonn_jax import paths
    from salmonn_jax.checkpoint_files import CHECKPOINTS_DIR
    from salmonn_jax.training.metric_writer import METRICS_FILE
    from salmonn_jax.training.run_page.page import write_run_page

    if not end.is_finished:
        print(
            f"{output}: SIGTERM ended the run after step {end.step} of {recipe.num_train_steps}, which is saved; the "
            "same command resumes it",
            file=sys.stderr,
        )
    if best is not None:
        step, value = best
        print(
            f"best {recipe.keep_best}: {value:.4g} after step {step}; use this checkpoint with --model "
            f"{output / CHECKPOINTS_DIR / str(step)}",
            file=sys.stderr,
        )
    if paths.size(output / METRICS_FILE):  # no step may have ended before SIGTERM
        print(f"page: {write_run_page(output)}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
