"""`launch.prepare self-stories`: a stub model that tells stories, and the debug run with activation tuning after it."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import soundfile

import salmonn_jax
from data_pipelines.self_generated import stories
from data_pipelines.sources import tones
from data_pipelines.sources.audio import AudioRules
from data_pipelines.sources.manifest import ManifestSource
from launch import cli, prepare
from salmonn_jax.evaluation.lock import exclusive
from salmonn_jax.model_directory import open_model
from tests.evaluation.stub import StubAnswer, StubModel
from tests.launch.evaluations import write
from tests.runs import losses

STORY = "In the harbour a bell rings while an old ship leaves for islands nobody has drawn on any map"
CLIPS = [  # id, answer, task, transcript
    ("told", "bell", "sound", ""),
    ("copied", "we sail at dawn said the captain to all of his men on deck", "asr", ""),
    ("heard", "speech", "sound", ""),
    ("looping", "rain", "sound", "drip"),
    ("cut", "wind", "sound", "whoosh"),
]


class Teller(StubModel):
    """Tells a story about each clip, except for those whose samples say otherwise. Records the settings it gets."""

    def __init__(self, fingerprint: str):
        super().__init__()
        self.fingerprint, self.calls = fingerprint, []

    def answer(self, requests, generation_config, *, batch_size):
        self.calls += [(prompt, generation_config.lora_multiplier) for prompt, _ in requests]
        self.num_answers += len(requests)
        return [self.tell(prompt, int(np.frombuffer(audio, np.int16)[0])) for prompt, audio in requests]

    def tell(self, prompt: str, number: int) -> StubAnswer:
        if "transcription" in prompt:
            return StubAnswer(CLIPS[2][0] + " everything that this long sentence says about the harbour")
        name = CLIPS[number - 1][0]
        if name == "copied":
            return StubAnswer("We sail at dawn, said the captain to all of his men.")
        if name == "heard":
            return StubAnswer("Heard everything that this long sentence says about the harbour")
        if name == "looping":
            return StubAnswer("drop and drop and " * 5)
        return StubAnswer(STORY, finish_reason="length" if name == "cut" else "stop")


@pytest.fixture
def teller(debug_run, monkeypatch):
    """Replaces the weights of the debug run by `Teller`."""
    model = Teller(open_model(debug_run).fingerprint)
    monkeypatch.setattr(salmonn_jax, "load", lambda *args, **kwargs: model)
    return model


@pytest.fixture
def clips(tmp_path) -> pathlib.Path:
    """Returns a manifest whose clips have their number as first sample, with one clip twice and one text."""
    (tmp_path / "audio").mkdir()
    lines = []
    for number, (name, answer, task, transcript) in enumerate(CLIPS, start=1):
        soundfile.write(tmp_path / "audio" / f"{name}.wav", np.full(16_000, number, np.int16), 16_000)
        line = {"id": name, "audio": f"audio/{name}.wav", "answer": answer, "task": task, "group": {"speaker": name}}
        lines.append(line | ({"transcript": transcript} if transcript else {}))
    lines += [lines[1] | {"id": "again"}, {"id": "text", "answer": "yes", "prompt": "Say yes."}]
    lines += [{"id": f"wrong {number}"} for number in range(20)]
    return write(tmp_path / "train.jsonl", lines)


@pytest.fixture
def tell(debug_run, monkeypatch, tmp_path):
    """Returns a function that runs `launch.prepare self-stories` with the debug run and returns its exit code."""
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"audio_story_telling": ["Which?", "Which tone?"]}))

    def run(output: pathlib.Path, *words: object) -> int:
        words = ["self-stories", "--model", debug_run, "--output", output, "--prompt-templates", prompts, *words]
        words += ["--max-new-tokens", 30, "--batch-size", 8]
        monkeypatch.setattr(sys, "argv", ["launch.prepare", *map(str, words)])
        try:
            cli.run(prepare.main)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


RULES = ("--min-words", 5, "--max-words", 40, "--no-preflight")


def lines_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_stories_about_a_manifest(tell, teller, clips, tmp_path, capsys):
    output = tmp_path / "data" / "stories.jsonl"
    assert tell(output, "--manifest", clips, *RULES) == 0
    captured = capsys.readouterr()
    assert "20 rows cannot be used and are not drawn; the first is line 8 of" in captured.err
    told = captured.out.splitlines()
    rejected = output.with_name("stories.rejected.jsonl")
    assert told[0] == f"kept 1 of 5 answers: {output}"
    assert told[1] == f"rejected 4 (transcript 2, cut 1, repeats 1): {rejected}"
    (story,) = lines_of(output)
    assert story["audio"] == str(tmp_path / "audio" / "told.wav") and story["answer"] == STORY
    assert (story["id"], story["task"]) == ("train/test/told", "audio_story_telling")
    assert story["group"] == {"speaker": "told"} and story["prompt"].endswith((" Which?", " Which tone?"))
    reasons = {line["id"].rpartition("/")[2]: (line["rule"], line["detail"]) for line in lines_of(rejected)}
    # The transcript of "copied" is the answer of the manifest, that of "heard" what the model itself transcribes.
    copies = {"copied", "again"} & set(reasons)
    assert len(copies) == 1 and reasons[copies.pop()][0] == reasons["heard"][0] == "transcript"
    assert reasons["cut"] == ("cut", "no stop token within 3 tokens") and reasons["looping"][0] == "repeats"
    # Stories have discounted adapters. Only the two clips whose words are unknown are transcribed, with full adapters.
    assert sorted(multiplier for _, multiplier in teller.calls) == [0.5] * 5 + [1.0] * 2
    assert sum("give me the transcription" in prompt for prompt, _ in teller.calls) == 2
    assert not list(tmp_path.rglob("*.clips")) and not list(tmp_path.rglob("lock"))
    (example,) = ManifestSource(str(output), "stories", AudioRules())
    np.testing.assert_array_equal(example.audio, np.full(16_000, 1, np.int16))


def test_the_same_command_makes_no_answer_again_and_other_rules_need_none(tell, teller, clips, tmp_path, capsys):
    output = tmp_path / "stories.jsonl"
    assert tell(output, "--manifest", clips, *RULES) == 0
    first, num_answers = output.read_bytes(), teller.num_answers
    assert tell(output, "--manifest", clips, *RULES) == 0
    assert output.read_bytes() == first and teller.num_answers == num_answers
    assert tell(output, "--manifest", clips, *RULES, "--max-transcript", 1) == 0
    assert len(lines_of(output)) == 3 and teller.num_answers == num_answers
    capsys.readouterr()
    assert tell(output, "--manifest", clips, "--no-preflight") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: none of 5 answers is kept (short 4, cut 1); ")
    assert tell(output, "--manifest", clips, *RULES, "--lora-multiplier", 0.4) == 2
    assert "was made with generation_config.lora_multiplier=0.5, not 0.4" in capsys.readouterr().err


def test_clips_without_files_are_written_beside_the_manifest(tell, teller, tmp_path, monkeypatch):
    monkeypatch.setattr(Teller, "tell", lambda *_: StubAnswer(STORY))
    output = tmp_path / "stories.jsonl"
    words = ("--corpus", "tones", "--data-dir", tmp_path / "tones", *RULES)
    assert tell(output, *words, "--clips", 7) == 0
    told = lines_of(output)
    assert len(told) == len(list((tmp_path / "stories.clips").iterdir())) == 7
    source = tones.ToneSource("tones", "train")
    for line, example in zip(told, ManifestSource(str(output), "stories", AudioRules()), strict=True):
        index = int(line["id"].rpartition("-")[2])
        assert line["id"] == f"tones/train/tones-train-{index}"
        samples = source[index].audio  # a manifest pads clips of less than a second
        np.testing.assert_array_equal(example.audio, np.pad(samples, (0, 16_000 - len(samples))))
    more = tmp_path / "more.jsonl"
    assert tell(more, *words, "--clips", 9) == 0
    assert {line["id"] for line in told} < {line["id"] for line in lines_of(more)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "stories.json"], "--output stories.json: must be a manifest, NAME.jsonl"),
        (["--min-words", 50, "--max-words", 40], "--min-words 50: must be at most --max-words 40"),
        (["--max-repeated", 2], "--max-repeated: '2': must be a number from 0 to 1"),
        (["--lora-multiplier", -1], "lora_multiplier=-1"),
        (["--mesh", "tensor=3"], "--mesh tensor=3 has 3 devices"),
        (["--splits", "train"], "--splits chooses splits of directories"),
    ],
)
def test_wrong_options_are_one_line(tell, teller, clips, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert tell(tmp_path / "stories.jsonl", "--manifest", clips, *words) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ") and message in told[-1]
    assert sorted(tmp_path.rglob("*")) == before and not teller.calls


def test_other_refusals(tell, teller, clips, tmp_path, capsys):
    output = write(tmp_path / "mine.jsonl", [])
    assert tell(output, "--manifest", clips) == 2
    assert "mine.jsonl already exists; choose another --output" in capsys.readouterr().err
    texts = write(tmp_path / "texts.jsonl", [{"id": "1", "answer": "yes", "prompt": "Say yes."}])
    assert tell(tmp_path / "s.jsonl", "--manifest", texts) == 2
    assert "no row of the data sets has a clip" in capsys.readouterr().err
    with exclusive(tmp_path / "s.answers"):
        assert tell(tmp_path / "s.jsonl", "--manifest", clips) == 2
    assert "another job writes to" in capsys.readouterr().err
    (tmp_path / "prompts.json").write_text(json.dumps({"audio_story_telling": ["About {}?"]}))
    assert tell(tmp_path / "s.jsonl", "--manifest", clips) == 2
    assert 'prompts without {} for the task "audio_story_telling"' in capsys.readouterr().err


def test_our_prompts_are_several_and_not_that_of_the_evaluation():
    from data_pipelines.transforms.prompt_templates import PromptTemplates

    prompts = stories.load_story_prompts(None)
    (asked,) = PromptTemplates.load_for_evaluation().by_task[stories.STORY_TASK]
    assert len(set(prompts)) == 8 and asked not in prompts


@pytest.mark.slow
def test_activation_tuning_of_the_debug_run(tell, debug_run, tmp_path, monkeypatch):
    """Stories of the debug run itself, and a stage 3 that reads them as they are."""
    words = ("--corpus", "tones", "--data-dir", tmp_path / "tones", "--min-words", 1, "--max-words", 99)
    words += (
        "--max-repeated",
        1,
        "--max-transcript",
        1,
        "--clips",
        24,
        "--no-preflight",
        "--num-beams",
        1,
        "--do-sample",
    )
    assert tell(tmp_path / "data" / "stories.jsonl", *words) == 0
    from launch import train

    options = {"data.data_dir": tmp_path / "data", "data.mixture.stories": 1, "data.seq_len": 64}
    options |= {"data.rows": 8, "data.clips": 8, "data.streams": 8}  # one row for each of the eight devices
    options |= {"data.max_answer_tokens": 24, "num_train_steps": 2, "activation_dtype": "float32"}
    words = ["stage3", "--model", debug_run, "--output", tmp_path / "stage3", *(f"{k}={v}" for k, v in options.items())]
    monkeypatch.setattr(sys, "argv", ["launch.train", *map(str, words)])
    cli.run(train.main)
    assert sorted(losses(tmp_path / "stage3")) == [1, 2]
