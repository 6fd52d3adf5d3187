"""Train and evaluate a small model on real audio: python -m launch.quickstart [--output runs/quickstart]

Builds the mini-corpus, trains all stages of the `mini` model, and evaluates it on held-out clips. If the command is
interrupted, run it again to resume.
"""

from __future__ import annotations

import time

from launch import cli

GREEDY = {"num_beams": 1, "max_new_tokens": 48}  # answers of the mini-corpus are short
STAGES = ("mini_stage0", "mini_stage1", "mini_stage2", "mini_stage3")


def main() -> None:
    """Parses the command line, then prepares, trains and evaluates."""
    parser = cli.make_parser("quickstart", __doc__)
    parser.add_argument(
        "--output",
        type=cli.output_path,
        default="runs/quickstart",
        help="output directory (default: %(default)s)",
    )
    output = parser.parse_args().output

    cli.start_jax()
    from data_pipelines import minicorpus
    from launch.answering import open_sources
    from launch.evaluate import Options, evaluate
    from launch.train import train
    from salmonn_jax.config import GenerationConfig
    from salmonn_jax.configs import get_preset
    from salmonn_jax.paths import as_path

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
