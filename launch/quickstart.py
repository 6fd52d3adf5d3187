"""Train and evaluate a small model on real audio: python -m launch.quickstart [--output runs/quickstart]

Builds the mini-corpus, trains all stages of the `mini` model from random weights, and evaluates it on held-out clips.

    python -m launch.quickstart --real WHISPER_DIR LLM_DIR [--output runs/quickstart-real] [field=value ...]

trains the paper's three stages on a pretrained Whisper and a pretrained language model, which stay frozen, with more
speech and with voices that are held out. It takes hours on two cores. If a command is interrupted, run it again to
resume.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from launch import cli

if TYPE_CHECKING:
    from salmonn_jax.paths import Path

GREEDY = {"num_beams": 1, "max_new_tokens": 48}  # answers of the mini-corpus are short
STAGES = ("mini_stage0", "mini_stage1", "mini_stage2", "mini_stage3")


def main() -> None:
    """Parses the command line, then prepares, trains and evaluates."""
    parser = cli.make_parser("quickstart", __doc__)
    parser.add_argument(
        "--output",
        type=cli.output_path,
        help="output directory (default: runs/quickstart, or runs/quickstart-real with --real)",
    )
    parser.add_argument(
        "--real", nargs=2, type=cli.local_path, metavar=("WHISPER_DIR", "LLM_DIR"), help="train on pretrained parts"
    )
    parser.add_argument(
        "--prompt-template", metavar="NAME|TEXT", help="with --real: see `launch.convert to-jax salmonn --help`"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="field=value",
        help="with --real: changes of the recipes of stages 1 and 2, e.g. num_train_steps=100",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.real is None and (arguments.prompt_template or arguments.overrides):
        parser.error("--prompt-template and field=value are only used with --real")
    if arguments.real is not None:
        from launch.quickstart_real import RealQuickstart
        from salmonn_jax.paths import as_path

        output = arguments.output or as_path("runs/quickstart-real")
        whisper, llm = arguments.real
        quickstart = RealQuickstart(
            output=output,
            whisper=whisper,
            llm=llm,
            prompt_template=arguments.prompt_template,
            overrides=arguments.overrides,
        )
        cli.start_jax()
        quickstart.run()
        return
    run_mini(arguments.output)


def run_mini(output: Path | None) -> None:
    """Builds the mini-corpus, and trains and evaluates the `mini` model.

    Args:
      output: output directory; None for runs/quickstart.
    """
    cli.start_jax()
    from data_pipelines import minicorpus
    from launch.answering import open_sources
    from launch.evaluate import Options, evaluate
    from launch.train import train
    from salmonn_jax.config import GenerationConfig
    from salmonn_jax.configs import get_preset
    from salmonn_jax.paths import as_path

    output = output or as_path("runs/quickstart")
    start_time = time.monotonic()
    data = get_preset(STAGES[0]).recipe.data
    minicorpus.prepare(as_path(data.data_dir), workers=2)
    model = None
    for name in STAGES:
        train(get_preset(name), output / name, model)
        model = output / name
    options = Options(conditions=("audio", "silence"))
    sources, notes = open_sources(None, data.corpus, as_path(data.data_dir), None, options.channels)
    evaluate(model, output / "evaluation", sources, GenerationConfig(**GREEDY), options, notes=notes)
    print(f"quickstart: {(time.monotonic() - start_time) / 60:.1f} minutes")


if __name__ == "__main__":
    cli.run(main)
