"""The command `launch.convert to-jax salmonn` on the golden set: options, errors, and what it writes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import salmonn_jax
from launch import convert
from salmonn_jax import model_directory, weights
from salmonn_jax.conversion import vicuna
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError
from tests import torch_checkpoints
from tests.conversion.golden_files import convert_arguments, rewritten
from tests.golden import MINI


def test_options_and_ignored_tensors_are_printed(tmp_path, capsys):
    MINI.require()
    convert.main(convert_arguments(tmp_path / "model", **{"--lora-alpha": 16}))
    captured = capsys.readouterr()
    assert "qformer_num_attention_heads: 4 (from the command line)" in captured.out
    assert "qformer_hidden_size: 32 (from the checkpoint)" in captured.out
    assert "second_per_window: 0.333333 (from the checkpoint)" in captured.out
    assert "lora_alpha: 16.0 (from the command line)" in captured.out
    assert "prompt template: vicuna (the original's default)" in captured.out
    assert re.search(r"qformer +[\d,]+  trained", captured.out)
    assert "ignored 1 key (speech_Qformer.bert.embeddings.position_ids): an index buffer, not a weight" in captured.err
    config = json.loads((tmp_path / "model" / "config.json").read_text())["model"]
    assert config["lora"] == {"rank": 8, "alpha": 16.0, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def test_base_weights_keep_their_dtype_and_fingerprint(converted):
    base = weights.load(converted / "base")
    assert base["llama/layers/q_proj/kernel"].dtype == np.float16
    assert base["whisper/conv1/kernel"].dtype == np.float32
    description = model_directory.read_config_json(converted)
    assert description["base"]["fingerprint"] == weights.fingerprint(base)


def test_a_mismatched_base_is_refused(converted, tmp_path):
    output = tmp_path / "model"
    shutil.copytree(converted, output)
    (output / "base.fingerprint").write_text("another\n")
    with pytest.raises(UserError, match=r"have changed since .* was created"):
        salmonn_jax.load(output)


def test_trainable_parts_are_initialised_without_a_checkpoint(untrained):
    delta = weights.load(untrained / "delta")
    assert not np.any(delta["llama/layers/q_proj/lora_b"])
    assert np.any(delta["qformer/layers/intermediate/kernel"])


def test_an_existing_directory_is_not_overwritten(converted, capsys):
    """It is refused before anything is read or printed."""
    before = (converted / "config.json").read_bytes()
    for command in (
        convert_arguments(converted),
        convert_arguments(converted, **{"--whisper": "none"}),
        ["to-torch", "salmonn", "--model", "none", "--output", str(converted)],
    ):
        with pytest.raises(UserError, match="already exists"):
            convert.main(command)
        assert capsys.readouterr() == ("", "")
    assert (converted / "config.json").read_bytes() == before


def test_an_interrupted_conversion_leaves_no_model(tmp_path, monkeypatch):
    MINI.require()
    output = tmp_path / "model"

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        convert.main(convert_arguments(output))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no config\.json"):
        salmonn_jax.load(output)
    convert.main(convert_arguments(output))
    salmonn_jax.load(output)


FULL_DISK = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from launch import cli, convert
for command in json.loads(sys.argv[1]):
    try:
        cli.run(lambda: convert.main(command))
    except SystemExit as stopped:
        print("exit code", stopped.code)
"""


def test_a_full_disk_leaves_no_output(converted, tmp_path):
    """Limits files to 100 kB, as a full disk would; expects one line, exit code 1 and no half-written output."""
    commands = [
        convert_arguments(tmp_path / "0"),
        ["to-torch", "salmonn", "--model", str(converted), "--output", str(tmp_path / "1")],
        ["to-torch", "llama", "--model", str(converted), "--output", str(tmp_path / "2")],
    ]
    words = [sys.executable, "-c", FULL_DISK, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "exit" in line] == ["exit code 1"] * 3
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(os.strerror(errno.EFBIG) in line for line in errors)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_rest_of_a_killed_conversion_is_replaced(converted, tmp_path):
    """Replaces what is left if the process is killed before config.json is written, but no file of the user."""
    output = tmp_path / "model"
    shutil.copytree(converted, tmp_path / "model.unfinished")
    (tmp_path / "model.unfinished" / "config.json").unlink()
    convert.main(convert_arguments(output))
    salmonn_jax.load(output)
    assert not (tmp_path / "model.unfinished").exists()
    mine = tmp_path / "mine"
    (mine / "base").mkdir(parents=True)
    (mine / "base" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already exists"):
        convert.main(convert_arguments(mine))
    assert (mine / "base" / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_options_of_the_command_line_and_defaults(tmp_path, capsys):
    bare = rewritten(tmp_path / "bare.pth", config=lambda _: {})
    given = {"--second-per-window": 0.5, "--second-stride": 0.25, "--lora-alpha": 12, "--checkpoint": bare}
    convert.main(convert_arguments(tmp_path / "given", **given))
    model = json.loads((tmp_path / "given" / "config.json").read_text())["model"]
    assert (model["qformer"]["second_per_window"], model["qformer"]["second_stride"]) == (0.5, 0.25)
    assert model["lora"]["alpha"] == 12
    capsys.readouterr()
    with pytest.raises(UserError, match="Q-Former: hidden_size=32: must be a multiple of num_attention_heads=5"):
        convert.main(convert_arguments(tmp_path / "x", **{"--checkpoint": bare, "--qformer-num-attention-heads": 5}))
    with pytest.raises(UserError, match="Q-Former: hidden_size=32: must be a multiple of num_attention_heads=12"):
        convert.main(convert_arguments(tmp_path / "x", **{"--checkpoint": bare, "--qformer-num-attention-heads": None}))
    convert.main(convert_arguments(tmp_path / "plain", **{"--checkpoint": bare}))
    output_text = capsys.readouterr().out
    for line in ("second_per_window: 0.333333", "second_stride: 0.333333", "lora_alpha: 32.0", "pad_classes: 1"):
        assert f"{line} (the original's default)" in output_text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--qformer-num-attention-heads": 0}, "Q-Former: num_attention_heads=0: must be greater than 0"),
        ({"--second-per-window": 60}, "--second-per-window 60.0: must be <= 30"),
        ({"--second-per-window": -1}, "Q-Former: second_per_window=-1.0: must be greater than 0"),
        ({"--second-stride": 0}, "Q-Former: second_stride=0.0: must be greater than 0"),
        (
            {"--checkpoint": None, "--qformer-num-attention-heads": 5},
            "Q-Former: hidden_size=64: must be a multiple of num_attention_heads=5",
        ),
        ({"--beats": None}, "was trained with BEATs"),
        ({"--llm": MINI.directory / "whisper"}, "model_type='whisper'; supported: llama"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, changes, says):
    MINI.require()
    with pytest.raises(UserError, match=says):
        convert.main(convert_arguments(tmp_path / "model", **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_options_of_the_checkpoint(tmp_path, capsys):
    def with_options(**values):
        return lambda config: {"model": dict(config["model"]) | values}

    template = "<|user|>{}<|assistant|>"
    file = rewritten(tmp_path / "other.pth", config=with_options(prompt_template=template), epoch=lambda _: 3)
    convert.main(convert_arguments(tmp_path / "model", **{"--checkpoint": file}))
    assert salmonn_jax.load(tmp_path / "model").config.prompt_template == template
    assert "ignored 1 key (epoch): training state" in capsys.readouterr().err
    convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "back.pth")])
    assert tensors.load_torch(tmp_path / "back.pth")["config"]["model"]["prompt_template"] == template
    file = rewritten(tmp_path / "other.pth", config=with_options(window_level_Qformer=False))
    with pytest.raises(UserError, match="window_level_Qformer=False"):
        convert.main(convert_arguments(tmp_path / "x", **{"--checkpoint": file}))
    file = rewritten(tmp_path / "other.pth", config=with_options(lora_alpha="many"))
    with pytest.raises(UserError, match="lora_alpha='many'"):
        convert.main(convert_arguments(tmp_path / "x", **{"--checkpoint": file}))
    file = rewritten(tmp_path / "other.pth", config=lambda _: {"model": None})
    convert.main(convert_arguments(tmp_path / "x", **{"--checkpoint": file}))


def test_a_checkpoint_with_a_flat_tensor_is_refused(tmp_path):
    def flat(model):
        return model | {"speech_query_tokens": model["speech_query_tokens"].flatten()}

    file = rewritten(tmp_path / "flat.pth", model=flat)
    with pytest.raises(UserError, match=r"not a SALMONN checkpoint: speech_query_tokens has the shape \[32\], not 3"):
        convert.main(convert_arguments(tmp_path / "model", **{"--checkpoint": file}))


def test_an_own_checkpoint_must_be_given(tmp_path):
    MINI.require()
    words = convert_arguments(tmp_path / "model", **{"--checkpoint": None, "--qformer-num-attention-heads": None})
    with pytest.raises(UserError, match="--own-checkpoint: there is no checkpoint to check"):
        convert.main([*words, "--own-checkpoint"])


def test_a_wrong_vicuna_is_refused(tmp_path, monkeypatch):
    MINI.require()
    wanted = dataclasses.replace(MINI.config.llama, max_position_embeddings=4096)
    monkeypatch.setitem(vicuna.RELEASED, 48, ("SALMONN-mini", "Vicuna-mini", wanted))
    with pytest.raises(UserError, match="not Vicuna-mini, which SALMONN-mini needs: max_position_embeddings is 512"):
        convert.main(convert_arguments(tmp_path / "model"))
    convert.main([*convert_arguments(tmp_path / "model"), "--own-checkpoint"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--llm": "whisper"}, "model_type='whisper'; supported: llama"),
        ({"--whisper": "vicuna"}, r"model_type='llama'; supported: whisper"),
        ({"--beats": "salmonn.pth"}, "is not a BEATs checkpoint"),
        (
            {"--whisper": "whisper", "--beats": "beats.pt", "--llm": "vicuna", "--checkpoint": "beats.pt"},
            "SALMONN checkpoint",
        ),
    ],
)
def test_compare_refuses_a_checkpoint_of_another_kind(converted, capsys, changes, says):
    options = [word for name, file in changes.items() for word in (name, str(MINI.directory / file))]
    with pytest.raises(UserError, match=says):
        convert.main(["compare", "--model", str(converted), *options, str(MINI.clip_path(0))])
    assert capsys.readouterr() == ("", "")


def test_compare_refuses_a_language_model_of_another_size(converted, tmp_path, capsys):
    torch_checkpoints.require_packages("tokenizers")
    llm = torch_checkpoints.write_llama(tmp_path / "llm")
    capsys.readouterr()  # the progress of transformers, which wrote it
    with pytest.raises(UserError, match=r"was not converted from these checkpoints: .*down_proj\.weight has shape"):
        convert.main(["compare", "--model", str(converted), "--llm", str(llm), str(MINI.clip_path(0))])
    assert capsys.readouterr() == ("", "")
