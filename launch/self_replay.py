"""The verb `self-replay` of `launch.prepare`: answers of the language model itself to texts, as replay data."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from launch import answering, cli
from launch.self_generated import Questions, add_rule_options, answer_all, rules_of, write_kept

if TYPE_CHECKING:
    from salmonn_jax.config import GenerationConfig

DESCRIPTION = """Asks the language model in text, without its adapters and in its own prompt template. The answers that
pass the rules become a manifest for replay: training on them keeps the model as it was. The same command resumes.

  python -m launch.prepare self-replay --model MODEL --prompts prompts.txt --output DATA/text.jsonl
  python -m launch.train stage2 --model RUN1 --output RUN2 data.data_dir=DATA data.mixture.mine=1 data.replay.text=0.05
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `self-replay`."""
    parser = subparsers.add_parser(
        "self-replay",
        help="let the language model answer texts without its adapters, for replay",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    answering.add_source_options(parser, "train")
    parser.add_argument(
        "--prompts",
        type=cli.path,
        metavar="FILE.txt",
        help="prompts, one in each line with \\n for line breaks, instead of the text-only rows of a data set",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=cli.output_path,
        metavar="TEXT.jsonl",
        help="manifest; beside it go TEXT.rejected.jsonl and TEXT.answers/",
    )
    add_rule_options(parser, min_words=1, max_words=600, max_repeated=0.2, max_transcript=1.0)
    answering.add_run_options(parser)
    cli.add_audio_options(parser, "error")
    cli.add_generation_options(parser, _default_config())
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Asks, sorts the answers and writes them."""
    from salmonn_jax.errors import UserError

    rules, config = rules_of(options), cli.pop_generation_config(vars(options), _default_config())
    sets = (options.manifest, options.corpus, options.data_dir)
    if options.prompts is None and not any(sets):
        raise UserError("nothing to ask; give --prompts FILE.txt, --manifest or --corpus")
    if options.prompts is not None and any(sets):
        raise UserError("--prompts and a data set exclude each other; give one")
    cli.start_jax()
    from data_pipelines.evaluation.rows import EvaluationRows
    from data_pipelines.self_generated import replay
    from data_pipelines.transforms.prompt_templates import PromptTemplates
    from salmonn_jax import distributed
    from salmonn_jax.evaluation.tasks import check_task

    if options.prompts is not None:
        sources = [replay.open_prompts(options.prompts)]
    else:
        sources, _ = answering.open_sources(
            options.manifest, options.corpus, options.data_dir, options.splits, options.channels
        )
    rows = EvaluationRows(sources, PromptTemplates.load_for_evaluation(), check_task)
    text_only = [index for index in range(len(rows)) if not rows.has_audio(index)]
    if not text_only:
        raise UserError("the data sets have no row without audio; give prompts with --prompts")
    questions = {"replay": Questions(rows=rows.select(text_only), generation_config=config)}
    with answer_all(options, questions) as answers:
        if answers is None:
            sys.exit(options.sigterm_exit_code)
        if distributed.is_main_process():
            write_kept(options.output, questions["replay"].rows, answers["replay"], rules, lambda answer: ())


def _default_config() -> GenerationConfig:
    from salmonn_jax.config import GenerationConfig

    return GenerationConfig(lora_multiplier=0.0, num_beams=1, max_new_tokens=400)
