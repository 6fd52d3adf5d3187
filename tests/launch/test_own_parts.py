"""Three commands on a user's own parts: convert an encoder and a language model, train some steps, generate.

No field is given but the data, the sizes of its batch, the steps and, for real weights, the learning rate. Random
weights are changed so that the answer is known.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from launch import cli, convert, generate, train
from salmonn_jax.model_directory import read_model_config
from salmonn_jax.prompts import PROMPT_TEMPLATES
from salmonn_jax.tokenizer import load_tokenizer
from tests import golden, torch_checkpoints
from tests.llm_families import FAMILIES, STOP_TOKENS
from tests.runs import losses

DATA = ("data.data_dir=data", "data.mixture.mine=1", "data.clips=8", "data.seq_len=256", "num_train_steps=10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with a Whisper, and with a manifest of eight clips of 0.5 s."""
    torch_checkpoints.require_packages("tokenizers")
    folder = tmp_path_factory.mktemp("own_parts")
    torch_checkpoints.write_whisper(folder / "whisper")
    (folder / "data").mkdir()
    random, lines = np.random.default_rng(0), []
    for index in range(8):
        name = f"{index}.wav"
        soundfile.write(folder / "data" / name, random.normal(scale=0.1, size=8000), 16_000)
        lines.append(json.dumps({"id": name, "audio": name, "task": "asr", "answer": "a dog barks"}))
    (folder / "data" / "mine.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(module, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command in this process."""
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    cli.run(module.main)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama3", "chatml", "mistral"])
def test_convert_train_and_generate(family, folder, monkeypatch, capsys):
    """The changed weights answer "a dog" and then the stop token of the family, at which the answer ends."""
    monkeypatch.chdir(folder)
    llm, model, output = folder / f"{family}-llm", folder / f"{family}-model", folder / f"{family}-run"
    FAMILIES[family](llm)
    tokenizer = load_tokenizer(llm)
    answer, last_of_prompt = tokenizer.encode("a dog"), tokenizer.encode(PROMPT_TEMPLATES[family].text)[-1]
    torch_checkpoints.chain_tokens(llm, [last_of_prompt, *answer, STOP_TOKENS[family][0]])
    run(convert, "to-jax", "salmonn", "--whisper", "whisper", "--llm", llm, "--output", model, monkeypatch=monkeypatch)
    assert read_model_config(model).stop_token_ids == STOP_TOKENS[family]
    run(train, "stage1", "--model", model, "--output", output, *DATA, monkeypatch=monkeypatch)
    assert sorted(losses(output)) == list(range(1, 11))
    assert all(np.isfinite(values).all() for values in losses(output).values())
    capsys.readouterr()
    run(
        generate, "--model", output, "--prompt", "What is heard?", "--max-new-tokens", 8, "data/0.wav",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert capsys.readouterr().out == "data/0.wav\ta dog\n"
    shutil.rmtree(output)


CAPTIONS = {"duck": "A duck quacks.", "excitement": "A man shouts.", "gunshots": "A gun is fired.", "music": "Music."}


def run_process(folder: pathlib.Path, *words: object) -> str:
    """Runs a command in a process of its own, with one device, and returns its output."""
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_real_whisper_and_smollm2(real_weights, tmp_path):
    """Three steps of `stage1` on real recordings: the loss falls, and the model answers."""
    golden.require(golden.SHARED / "audio")
    (tmp_path / "data").mkdir()
    lines = []
    for name, caption in CAPTIONS.items():
        shutil.copy(golden.SHARED / "audio" / f"{name}.wav", tmp_path / "data")
        lines.append(json.dumps({"id": name, "audio": f"{name}.wav", "task": "audiocaption", "answer": caption}))
    (tmp_path / "data" / "mine.jsonl").write_text("\n".join(lines) + "\n")
    parts = ("--whisper", real_weights / "whisper-base", "--llm", real_weights / "smollm2-135m")
    summary = run_process(tmp_path, "launch.convert", "to-jax", "salmonn", *parts, "--output", "model")
    assert "stop tokens: <|im_end|> (2)" in summary
    data = ("data.data_dir=data", "data.mixture.mine=1", "data.rows=1", "data.streams=1", "data.clips=2")
    steps = ("data.seq_len=256", "num_train_steps=3", "lr_schedule.warmup_steps=0", "lr_schedule.peak_lr=1e-3")
    run_process(tmp_path, "launch.train", "stage1", "--model", "model", "--output", "run", *data, *steps)
    values = [losses(tmp_path / "run")[step] for step in (1, 2, 3)]
    assert np.isfinite(values).all() and len(set(values)) == 3
    assert values[2][0] < values[0][0]
    question = ("--prompt", "Describe the audio.", "--max-new-tokens", 8)
    answer = run_process(tmp_path, "launch.generate", "--model", "run", *question, "data/duck.wav")
    file, text = answer.removesuffix("\n").split("\t")
    assert file == "data/duck.wav" and text.strip()
