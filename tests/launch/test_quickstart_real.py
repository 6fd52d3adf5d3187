"""`launch.quickstart --real` from parts to pages, on generated tones, with a language model whose answer is known."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from launch import cli, quickstart
from salmonn_jax.prompts import PROMPT_TEMPLATES
from salmonn_jax.tokenizer import load_tokenizer
from tests import torch_checkpoints
from tests.launch.test_own_parts import run_process
from tests.llm_families import FAMILIES, STOP_TOKENS
from tests.runs import losses

SMALL = ("data.corpus=tones", "data.data_dir=tones", 'data.mixture={"tones": 1}', "num_train_steps=2", "save_every=1")
UNCHANGED = ("lr_schedule.peak_lr=1e-12", "lr_schedule.init_lr=1e-12", "lr_schedule.end_lr=1e-12")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["launch.quickstart", *map(str, words)])
    cli.run(quickstart.main)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> pathlib.Path:
    """Returns a directory with a Whisper, and with a language model that always tells the same story."""
    torch_checkpoints.require_packages("tokenizers")
    folder = tmp_path_factory.mktemp("parts")
    torch_checkpoints.write_whisper(folder / "whisper")
    FAMILIES["chatml"](folder / "llm")
    tokenizer = load_tokenizer(folder / "llm")
    (first,) = tokenizer.encode("a")
    words = [
        i for i in range(320) if tokenizer.decode([first, i])[1:2] == " " and tokenizer.decode([i]).strip().isalpha()
    ]
    last_of_prompt = tokenizer.encode(PROMPT_TEMPLATES["chatml"].text)[-1]
    torch_checkpoints.chain_tokens(folder / "llm", [last_of_prompt, *words, STOP_TOKENS["chatml"][0]])
    return folder


@pytest.mark.slow
def test_all_stages_and_again(parts, tmp_path):
    words = ("--real", parts / "whisper", parts / "llm", "--output", "out", *SMALL, *UNCHANGED)
    shown = run_process(tmp_path, "launch.quickstart", *words)
    assert "[10/10] evaluation" in shown and "pages: out/evaluation/index.html" in shown
    assert [len(losses(tmp_path / "out" / f"real_stage{stage}")) for stage in (1, 2, 3)] == [2, 2, 12]
    stories = [json.loads(line) for line in (tmp_path / "out" / "stories.jsonl").read_text().splitlines()]
    assert stories and {story["task"] for story in stories} == {"audio_story_telling"}
    assert all((tmp_path / "out" / page / "index.html").exists() for page in ("evaluation", "real_stage1"))
    predictions = tmp_path / "out" / "evaluation" / "predictions.jsonl"
    before = predictions.read_bytes()
    assert {json.loads(line)["condition"] for line in before.splitlines()} == {"audio", "silence"}
    shutil.rmtree(tmp_path / "out" / "real_stage3_stories")  # as if the command was interrupted before
    assert "following" in run_process(tmp_path, "launch.quickstart", *words)
    assert predictions.read_bytes() == before


def test_other_parts_than_those_of_the_output_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "model").mkdir(parents=True)
    first, second, whisper = tmp_path / "first", tmp_path / "second", tmp_path / "whisper"
    begun = {"whisper": str(whisper), "llm": str(first), "prompt_template": None}
    (tmp_path / "out" / "quickstart.json").write_text(json.dumps(begun))
    with pytest.raises(SystemExit) as refused:  # the Whisper is the same one, as a relative path
        run(monkeypatch, "--real", "whisper", "second", "--output", "out")
    assert refused.value.code == 2
    assert capsys.readouterr().err == f"error: out was begun with llm {first}, not {second}; choose another --output\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("num_train_steps=3",), "--prompt-template and field=value are only used with --real"),
        (("--real", "no-whisper", "no-llm", "--output", "out"), "no-whisper"),
        (("--real", "no-whisper", "no-llm", "--output", "out", "num_train_steps=0"), "num_train_steps=0: must be"),
        (("--real", "no-whisper", "no-llm", "--output", "out", "data.speed=0.1"), "encoder_cache"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_built(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, *words)
    error = capsys.readouterr().err
    assert refused.value.code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / ".cache").exists() and not (tmp_path / "out").exists()
