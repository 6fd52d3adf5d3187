"""The quickstart with pretrained parts (`launch.quickstart --real`): the paper's three stages on frozen real weights.

Each step is skipped if its output is finished, and each resumes, so the same command continues after an interruption.
Evaluations have no preflight: a model that was trained for a few steps only may be as bad as it is.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipelines.evaluation.rows import NamedSource
    from salmonn_jax.config import DataConfig
    from salmonn_jax.configs.preset import Preset
    from salmonn_jax.paths import Path

# New parts for a small language model: windows of 240 ms with one query each, and adapters of rank 16.
NEW_PARTS = {
    "audio_window_seconds": 5.0,
    "audio_tokens": "clip",
    "qformer_hidden_size": 384,
    "qformer_num_hidden_layers": 2,
    "qformer_num_attention_heads": 6,
    "num_speech_query_token": 1,
    "second_per_window": 0.24,
    "second_stride": 0.24,
    "lora_rank": 16,
    "lora_alpha": 32.0,
}
ARGUMENTS_FILE = "quickstart.json"  # arguments with which the model was made
GREEDY = {"num_beams": 1, "max_new_tokens": 48}  # answers of the corpus are short
NUM_STORIES = 64  # clips that the model of stage 2 tells stories about, of which stage 3 uses those that are kept
NUM_STORY_QUESTIONS = 48  # held-out clips on which stories are measured before and after stage 3
STORY_TOKENS = 200
BEFORE_AND_AFTER = ("numbers", "telephone")  # sources on which speech recognition is measured before and after stage 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealQuickstart:
    """The steps of the quickstart, and where they write.

    Attributes:
      output: directory of everything that is made, but for the corpus.
      whisper: Hugging Face directory or `.pt` file of a Whisper.
      llm: Hugging Face directory of a language model.
      prompt_template: see `launch.convert to-jax salmonn --prompt-template`; None for the chat template of the model.
      overrides: changes of the recipes of stages 1 and 2, `field=value`.
    """

    output: Path
    whisper: Path
    llm: Path
    prompt_template: str | None = None
    overrides: Sequence[str] = ()

    def run(self) -> None:
        """Runs all steps.

        Raises:
          UserError: an override is wrong, the corpus cannot be built, or the parts cannot be used.
        """
        self._check_same()
        data = self._preset("real_stage1").recipe.data
        steps: dict[str, Callable[[], object]] = {
            "model": self._convert,
            "corpus": lambda: self._prepare_corpus(data),
            "stage 1": lambda: self._train("real_stage1", self.output / "model"),
            "stage 2": lambda: self._train("real_stage2", self.output / "real_stage1"),
            "stories for stage 3": lambda: self._tell_stories(data),
            "stage 3": lambda: self._train("real_stage3", self.output / "real_stage2"),
            "evaluation before stage 3": lambda: self._evaluate_stories(data, "real_stage2"),
            "evaluation after stage 3": lambda: self._evaluate_stories(data, "real_stage3"),
            "effect of stage 3": self._compare,
            "evaluation": lambda: self._evaluate(data),
        }
        start = time.monotonic()
        for number, (name, step) in enumerate(steps.items(), 1):
            minutes = (time.monotonic() - start) / 60
            print(f"[{number}/{len(steps)}] {name} (after {minutes:.1f} minutes)", flush=True)
            step()
        print(f"quickstart: {(time.monotonic() - start) / 60:.1f} minutes")
        print(f"pages: {self.output / 'evaluation' / 'index.html'} {self.output / 'real_stage1' / 'index.html'}")

    def _check_same(self) -> None:
        """Raises UserError if `output` was begun with other arguments, which its finished steps would ignore."""
        from salmonn_jax.errors import UserError

        if not (self.output / "model").exists():
            return
        begun, arguments = json.loads((self.output / ARGUMENTS_FILE).read_text()), self._arguments()
        for name in arguments:
            if begun.get(name) != arguments[name]:
                raise UserError(
                    f"{self.output} was begun with {name} {begun.get(name)}, not {arguments[name]}; choose another "
                    "--output"
                )

    def _arguments(self) -> dict[str, str | None]:
        """Returns the arguments that decide the model, as JSON values."""
        from salmonn_jax.paths import absolute

        whisper, llm = str(absolute(self.whisper)), str(absolute(self.llm))
        return {"whisper": whisper, "llm": llm, "prompt_template": self.prompt_template}

    def _preset(self, name: str) -> Preset:
        """Returns the preset of a stage with its model, once that exists, and without dropout."""
        from launch.presets import resolve_preset

        if name == "real_stage3":
            return resolve_preset(name, [f"data.data_dir={self.output}"], self.output / "model")
        model = self.output / "model" if (self.output / "model").exists() else None
        no_dropout = ["model.lora.dropout=0", "model.qformer.dropout=0"] if model else []
        cache = f"data.encoder_cache={self.output / 'encoder_cache'}"
        return resolve_preset(name, [cache, *no_dropout, *self.overrides], model)

    def _prepare_corpus(self, data: DataConfig) -> None:
        from data_pipelines import utterances
        from salmonn_jax.paths import as_path

        if data.corpus == "utterances":
            utterances.prepare(as_path(data.data_dir), workers=2)

    def _convert(self) -> None:
        from salmonn_jax.conversion import to_jax
        from salmonn_jax.conversion.settings.options import SalmonnOptions
        from salmonn_jax.files import atomic_write

        if not (self.output / "model").exists():
            options = SalmonnOptions(**NEW_PARTS, prompt_template=self.prompt_template)
            plan = to_jax.plan_salmonn(self.whisper, None, self.llm, None, options)
            with atomic_write(self.output / ARGUMENTS_FILE) as unfinished:
                unfinished.write_text(json.dumps(self._arguments()))
            to_jax.write_model(plan, self.output / "model")

    def _train(self, name: str, model: Path) -> None:
        from launch.train import train

        if not train(self._preset(name), self.output / name, model):
            raise SystemExit(0)  # SIGTERM; the same command continues

    def _tell_stories(self, data: DataConfig) -> None:
        from launch import prepare

        words = [
            *("self-stories", "--model", self.output / "real_stage2", "--output", self.output / "stories.jsonl"),
            *("--corpus", data.corpus, "--data-dir", data.data_dir, "--clips", NUM_STORIES, "--min-words", 10),
            *("--num-beams", 1, "--max-new-tokens", STORY_TOKENS, "--too-long", "truncate", "--no-preflight"),
        ]
        prepare.main(list(map(str, words)))

    def _evaluate_stories(self, data: DataConfig, stage: str) -> None:
        """Measures stories and speech recognition of a stage on held-out clips."""
        from launch.evaluate import Options, evaluate
        from salmonn_jax.config import GenerationConfig

        speech = [source for source in _open_held_out(data)[0] if source.name in BEFORE_AND_AFTER]
        settings = GenerationConfig(num_beams=1, max_new_tokens=STORY_TOKENS)
        sources = [*speech, _story_questions(data)]
        evaluate(self.output / stage, self.output / f"{stage}_stories", sources, settings, Options(preflight=False))

    def _compare(self) -> None:
        """Prints what stage 3 changed, in pairs with intervals."""
        from launch.score import score

        score(self.output / "real_stage3_stories", compare=self.output / "real_stage2_stories")

    def _evaluate(self, data: DataConfig) -> None:
        """Evaluates the model of stage 3 on all held-out clips, with the clips and with silence."""
        from launch.evaluate import Options, evaluate
        from salmonn_jax.config import GenerationConfig

        sources, notes = _open_held_out(data)
        options, settings = Options(conditions=("audio", "silence"), preflight=False), GenerationConfig(**GREEDY)
        evaluate(self.output / "real_stage3", self.output / "evaluation", sources, settings, options, notes=notes)


def _open_held_out(data: DataConfig) -> tuple[list[NamedSource], Sequence[str]]:
    """Returns the held-out splits of all sources with audio, and notes about them."""
    from launch.answering import open_sources
    from salmonn_jax.paths import as_path

    return open_sources(None, data.corpus, as_path(data.data_dir), None, data.channels)


def _story_questions(data: DataConfig) -> NamedSource:
    """Returns a data set that asks for stories about held-out clips of all sources, with the original's test prompt."""
    from data_pipelines import corpora
    from data_pipelines.evaluation.rows import NamedSource
    from data_pipelines.evaluation.sources import open_rows
    from data_pipelines.self_generated import stories
    from data_pipelines.transforms.prompt_templates import PromptTemplates

    corpus = corpora.open_corpus(data.corpus, data.data_dir)
    (prompt,) = PromptTemplates.load_for_evaluation().by_task[stories.STORY_TASK]
    ask = stories.ask_for_story([prompt])
    names = corpus.evaluation_sources("test")
    questions = []
    for name in names:
        examples = corpus.open_source(name, "test")
        for index in range(min(len(examples), -(-NUM_STORY_QUESTIONS // len(names)))):
            example = examples[index]
            questions.append(dataclasses.replace(ask(example, True), id=f"{name}/{example.id}"))
    return NamedSource("stories", "test", str(data.data_dir), open_rows(questions, "stories test"))
