"""The golden set, converted by the command and loaded as a user would: the numbers are the original's."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import salmonn_jax
from launch import convert
from salmonn_jax import model_directory, weights
from salmonn_jax.conversion import mapping, tables, tensors
from salmonn_jax.errors import UserError
from tests import golden

CLIPS = range(3)


def arguments(output, **changes) -> list[str]:
    """The command line that converts the golden set to `output`."""
    parts = {
        "--whisper": golden.FOLDER / "whisper",
        "--beats": golden.FOLDER / "beats.pt",
        "--llm": golden.FOLDER / "vicuna",
        "--checkpoint": golden.FOLDER / "salmonn.pth",
        "--qformer-heads": 4,
        "--output": output,
    } | changes
    return ["to-jax", "salmonn", *(str(word) for pair in parts.items() if pair[1] is not None for word in pair)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    golden.require()
    output = tmp_path_factory.mktemp("converted") / "model"
    convert.main(arguments(output))
    return output


@pytest.fixture(scope="module")
def model(directory):
    return salmonn_jax.load(directory)


def clip(i: int) -> pathlib.Path:
    return golden.SHARED / "audio" / golden.texts()["wavs"][i]


def question(i: int) -> str:
    return golden.texts()["prompts"][i].removeprefix("USER: ").removesuffix("\nASSISTANT:")


@pytest.mark.parametrize("i", CLIPS)
def test_audio_tokens(model, i):
    expected = golden.expected()[f"audio_tokens_single_{i}"].reshape(88, -1)
    error = np.linalg.norm(model.encode_audio(clip(i))[0] - expected) / np.linalg.norm(expected)
    assert error < 1e-4


@pytest.mark.parametrize("i", CLIPS)
def test_score_of_the_answer_is_the_loss(model, i):
    scores = model.score(clip(i), question(i), golden.texts()["texts"][i])
    assert -scores.mean() == pytest.approx(golden.expected()["loss"][i], rel=1e-5)


def test_greedy_ids(model):
    expected = [entry["ids"][1:] for entry in golden.texts()["generate_greedy"]]  # without the <s> they begin with
    answers = model.generate([clip(i) for i in CLIPS], [question(i) for i in CLIPS], max_new_tokens=len(expected[0]))
    assert [answer.token_ids for answer in answers] == expected


def test_what_the_checkpoint_tells_and_what_is_left_out_is_printed(tmp_path, capsys):
    golden.require()
    convert.main(arguments(tmp_path / "model", **{"--lora-alpha": 16}))
    told = capsys.readouterr().err
    assert "heads: 4 (from the command line)" in told
    assert "window_seconds: 0.333333 (from the checkpoint)" in told
    assert "lora_alpha: 16.0 (from the command line)" in told
    assert "not needed: speech_Qformer.bert.embeddings.position_ids (a counter, not a weight)" in told
    config = json.loads((tmp_path / "model" / "config.json").read_text())["model"]
    assert config["lora"] == {"rank": 8, "alpha": 16.0, "dropout": 0.1, "targets": ["q_proj", "v_proj"]}


def test_weights_keep_their_dtype_and_the_fingerprint_is_theirs(directory):
    base = weights.load(directory / "base")
    assert base["llama/layers/q_proj/kernel"].dtype == np.float16
    assert base["whisper/conv1/kernel"].dtype == np.float32
    description = model_directory.read_description(directory)
    assert description["base"]["fingerprint"] == weights.fingerprint(base)


def test_another_base_is_refused(directory, tmp_path):
    output = tmp_path / "model"
    convert.main(arguments(output))
    (output / "base.fingerprint").write_text("another\n")
    with pytest.raises(UserError, match=r"are not those .* was made with"):
        salmonn_jax.load(output)


def test_without_a_checkpoint_the_trained_parts_are_new(tmp_path):
    golden.require()
    convert.main(arguments(tmp_path / "model", **{"--checkpoint": None}))
    delta = weights.load(tmp_path / "model" / "delta")
    assert not np.any(delta["llama/layers/q_proj/lora_b"])
    assert np.any(delta["qformer/layers/intermediate/kernel"])


def test_nothing_is_written_over(directory):
    before = (directory / "config.json").read_bytes()
    with pytest.raises(UserError, match="holds something already"):
        convert.main(arguments(directory))
    assert (directory / "config.json").read_bytes() == before


def test_an_interrupted_conversion_is_no_model(tmp_path, monkeypatch):
    golden.require()
    output = tmp_path / "model"

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        convert.main(arguments(output))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no config\.json"):
        salmonn_jax.load(output)
    convert.main(arguments(output))
    salmonn_jax.load(output)


def test_a_full_disk_leaves_nothing(directory, tmp_path):
    """No file may grow beyond 100 kB, as if the disk ended there: one line, exit code 1, nothing half-written."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from launch import cli, convert; cli.run(lambda: convert.main(sys.argv[1:]))"
    )
    for i, words in enumerate(
        (
            arguments(tmp_path / "0"),
            ["to-torch", "salmonn", "--model", str(directory), "--output", str(tmp_path / "1")],
            ["to-torch", "llama", "--model", str(directory), "--output", str(tmp_path / "2")],
        )
    ):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        told = done.stderr.strip().splitlines()[-1]
        assert told.startswith("error: ") and os.strerror(errno.EFBIG) in told and "Traceback" not in done.stderr
        assert not list(tmp_path.glob(f"{i}*"))


def test_what_a_kill_leaves_may_be_written_over(directory, tmp_path):
    """Killed after the tokenizer was copied and before config.json: everything but config.json is there."""
    output = tmp_path / "model"
    shutil.copytree(directory, output)
    (output / "config.json").rename(output / "config.json.tmp")
    convert.main(arguments(output))
    salmonn_jax.load(output)
    (output / "config.json").unlink()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already"):
        convert.main(arguments(output))


def checkpoint(path: pathlib.Path) -> dict[str, tensors.Tensor]:
    return tensors.tensors_of(tensors.load_torch(path)["model"], path, "model")


def equal_bytes(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert ours[name].read().tobytes() == tensor.read().tobytes(), name


def test_the_checkpoint_comes_back_byte_for_byte(directory, tmp_path):
    output = tmp_path / "back" / "salmonn.pth"
    convert.main(["to-torch", "salmonn", "--model", str(directory), "--output", str(output)])
    theirs = checkpoint(golden.FOLDER / "salmonn.pth")
    for name in mapping.ignored(tables.SALMONN, theirs):
        del theirs[name]
    equal_bytes(checkpoint(output), theirs)
    with pytest.raises(UserError, match="is there already"):
        convert.main(["to-torch", "salmonn", "--model", str(directory), "--output", str(output)])
    # It tells all that its tensors cannot, the heads included.
    again = tmp_path / "again"
    convert.main(arguments(again, **{"--checkpoint": output, "--qformer-heads": None}))
    one, two = (model_directory.read_description(place) for place in (directory, again))
    assert one["model"] == two["model"] and one["base"]["fingerprint"] == two["base"]["fingerprint"]
    assert weights.fingerprint(weights.load(directory / "delta")) == weights.fingerprint(weights.load(again / "delta"))


def test_the_adapters_come_out_as_peft_names_them(directory, tmp_path):
    convert.main(["to-torch", "peft", "--model", str(directory), "--output", str(tmp_path / "adapter")])
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (8, 32.0, ["q_proj", "v_proj"])
    theirs = checkpoint(golden.FOLDER / "salmonn.pth")
    expected = {
        name.replace("llama_model.", "").replace(".default", ""): tensor
        for name, tensor in theirs.items()
        if ".lora_" in name
    }
    equal_bytes(tensors.open_file(tmp_path / "adapter" / "adapter_model.safetensors"), expected)
