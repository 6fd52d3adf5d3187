"""The verb `self-stories` of `launch.prepare`: stories of a model about clips, as data for activation tuning."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from launch import answering, cli
from launch.self_generated import Questions, add_rule_options, answer_all, rules_of, write_kept

if TYPE_CHECKING:
    from salmonn_jax.config import GenerationConfig
    from salmonn_jax.evaluation.predictions import Prediction

LORA_MULTIPLIER = 0.5  # adapters at 2.0 instead of 4.0, where the original tells stories before activation tuning
MAX_NEW_TOKENS = 400
DESCRIPTION = """Asks a model for stories about clips, with discounted adapters. Those that pass the rules become a
manifest for stage 3, activation tuning (docs/self_stories.md). The same command resumes.

  python -m launch.prepare self-stories --model RUNS/stage2 --manifest train.jsonl --output DATA/stories.jsonl
  python -m launch.train stage3 --model RUNS/stage2 --output RUNS/stage3 data.data_dir=DATA data.mixture.stories=1
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `self-stories`."""
    parser = subparsers.add_parser(
        "self-stories",
        help="let a model tell stories about clips, for stage 3",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    answering.add_source_options(parser, "train")
    parser.add_argument(
        "--output",
        required=True,
        type=cli.output_path,
        metavar="STORIES.jsonl",
        help="manifest; beside it go STORIES.rejected.jsonl, STORIES.answers/ and, for clips without files of their "
        "own, STORIES.clips/",
    )
    parser.add_argument(
        "--clips", type=cli.positive_int, default=100, help="number of clips, drawn at random (default: %(default)s)"
    )
    parser.add_argument(
        "--clips-seed", type=cli.non_negative_int, default=0, help="seed of the draw (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt-templates",
        type=cli.file_to_read,
        metavar="FILE",
        help='JSON, {"audio_story_telling": [prompt, ...]} (default: eight prompts of our own)',
    )
    add_rule_options(parser, min_words=30, max_words=600, max_repeated=0.2, max_transcript=0.5)
    answering.add_run_options(parser)
    cli.add_audio_options(parser, "truncate", "error", "chunk")
    cli.add_generation_options(parser, _default_config())
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Asks for stories, and for the transcripts that the data lacks; sorts the stories and writes them."""
    rules, config = rules_of(options), cli.pop_generation_config(vars(options), _default_config())
    cli.start_jax()
    from data_pipelines.evaluation.rows import EvaluationRows
    from data_pipelines.self_generated import stories
    from data_pipelines.transforms.prompt_templates import PromptTemplates
    from salmonn_jax import distributed
    from salmonn_jax.evaluation.tasks import check_task

    prompts = stories.load_story_prompts(options.prompt_templates)
    only_files = options.manifest and not any(path.is_dir() for path in options.manifest)
    splits = options.splits or (None if only_files else ["train"])
    sources, _ = answering.open_sources(options.manifest, options.corpus, options.data_dir, splits, options.channels)
    rows = EvaluationRows(sources, PromptTemplates("", {}), check_task, stories.ask_for_story(prompts))
    if rows.rejected and distributed.is_main_process():
        first = rows.rejected[0]
        print(
            f"warning: {len(rows.rejected)} rows cannot be used and are not drawn; the first is {first.place}: "
            f"{first.reason}",
            file=sys.stderr,
        )
    rows = rows.select(stories.draw_clips(rows, options.clips, options.clips_seed))
    unknown = [index for index in range(len(rows)) if not rows.fields(index)["transcript"]]
    questions = {
        "stories": Questions(rows=rows, generation_config=config),
        "transcripts": Questions(
            rows=rows.select(unknown, stories.ask_for_transcript()),
            generation_config=dataclasses.replace(config, lora_multiplier=1.0),
        ),
    }
    with answer_all(options, questions) as answers:
        if answers is None:
            sys.exit(options.sigterm_exit_code)
        if distributed.is_main_process():
            transcripts = {_row(answer): answer.prediction for answer in answers["transcripts"]}

            def known_texts(story: Prediction) -> list[str]:
                return [story.transcript, transcripts.get(_row(story), ""), *story.references]

            write_kept(options.output, rows, answers["stories"], rules, known_texts)


def _row(answer: Prediction) -> tuple[str, str, str]:
    return answer.source, answer.split, answer.id


def _default_config() -> GenerationConfig:
    from salmonn_jax.config import GenerationConfig

    return GenerationConfig(lora_multiplier=LORA_MULTIPLIER, max_new_tokens=MAX_NEW_TOKENS)
