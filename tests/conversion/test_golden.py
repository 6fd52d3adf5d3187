"""Converts the shipped golden set by the command and loads it as a user does; compares with the original's results."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import salmonn_jax
from launch import convert
from salmonn_jax import model_directory, weights
from salmonn_jax.audio.files import load_audio
from salmonn_jax.config import ModelConfig, from_dict
from salmonn_jax.conversion import mapping, tables, to_torch, vicuna
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError
from tests.golden import MINI, NUM_CLIPS, relative_error


def arguments(output, **changes) -> list[str]:
    """Returns the command line that converts the golden set to `output`, with options changed or (None) left out."""
    parts = {
        "--whisper": MINI.directory / "whisper",
        "--beats": MINI.directory / "beats.pt",
        "--llm": MINI.directory / "vicuna",
        "--checkpoint": MINI.directory / "salmonn.pth",
        "--qformer-num-attention-heads": 4,
        "--output": output,
    } | changes
    return ["to-jax", "salmonn", *(str(word) for pair in parts.items() if pair[1] is not None for word in pair)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The converted golden set; tests do not change it."""
    MINI.require()
    output = tmp_path_factory.mktemp("converted") / "model"
    convert.main(arguments(output))
    return output


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The golden set converted without its checkpoint, for a model that reads the audio tokens of the clip alone."""
    MINI.require()
    output = tmp_path_factory.mktemp("untrained") / "model"
    convert.main(
        arguments(output, **{"--checkpoint": None, "--qformer-num-attention-heads": None, "--audio-tokens": "clip"})
    )
    return output


@pytest.fixture(scope="module")
def model(directory):
    """The converted golden set, loaded."""
    return salmonn_jax.load(directory)


@pytest.fixture(scope="module")
def clips() -> list[pathlib.Path]:
    """The audio files."""
    return [MINI.clip_path(clip) for clip in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def questions() -> list[str]:
    """The prompt of each clip, without the prompt template."""
    return [text.removeprefix("USER: ").removesuffix("\nASSISTANT:") for text in MINI.expected_json["prompts"]]


def test_configuration(directory):
    config = from_dict(ModelConfig, model_directory.read_config_json(directory)["model"])
    assert config == dataclasses.replace(MINI.config, pad_classes=1, stop_token_ids=(2,))


def test_audio_tokens_of_each_clip_alone(model, clips):
    for i, clip in enumerate(clips):
        theirs = MINI.expected[f"audio_tokens_single_{i}"]
        assert relative_error(model.encode_audio(clip), theirs) < 1e-5


def test_scores_of_the_answers_are_the_losses(model, clips, questions):
    """The model's [PAD] has a logit of zero, because its weights are in no checkpoint."""
    scores = model.score(clips, questions, MINI.expected_json["texts"])
    losses = [MINI.loss_without_pad_row(i) for i in range(NUM_CLIPS)]
    np.testing.assert_allclose([-score.mean() for score in scores], losses, rtol=1e-5)


@pytest.mark.parametrize("too_long", ["error", "truncate", "chunk", "chunk_answers"])
def test_greedy_ids(model, clips, questions, too_long):
    """The original's ids begin with an <s> that ours leave out. The clips are shorter than the window."""
    expected = [answer["ids"][1:] for answer in MINI.expected_json["generate_greedy"]]
    answers = model.generate(clips, questions, num_beams=1, max_new_tokens=max(map(len, expected)), too_long=too_long)
    assert [answer.token_ids for answer in answers] == expected


@pytest.fixture(scope="module")
def long(clips) -> tuple[np.ndarray, int]:
    """A recording of 95 s, four windows of which the last has 5 s."""
    return np.resize(np.concatenate([load_audio(clip) for clip in clips]), 95 * 16_000), 16_000


def test_a_recording_of_95_seconds(model, long):
    options = {"num_beams": 1, "max_new_tokens": 4}
    with pytest.raises(UserError, match=r"clip 1 is 95\.0 s, the window 30 s; choose too_long \(--too-long\) truncate"):
        model.generate(long, "What is said?", **options)
    parts = [(long[0][start : start + 480_000], 16_000) for start in range(0, len(long[0]), 480_000)]
    alone = model.generate(parts, "What is said?", **options)
    times = [(0.0, 30.0), (30.0, 60.0), (60.0, 90.0), (90.0, 95.0)]
    (truncated,) = model.generate(long, "What is said?", too_long="truncate", **options)
    assert (truncated.token_ids, truncated.windows) == (alone[0].token_ids, ((0.0, 30.0, None),))
    (answered,) = model.generate(long, "What is said?", too_long="chunk_answers", **options)
    assert answered.token_ids == [token for answer in alone for token in answer.token_ids]
    assert answered.windows == tuple((*time, answer.text) for time, answer in zip(times, alone, strict=True))
    (heard,) = model.generate(long, "What is said?", too_long="chunk", **options)
    assert heard.windows == tuple((*time, None) for time in times)
    with pytest.raises(UserError, match=r"clip 1 has 4 windows: \d+ tokens and 200 new tokens are more than the 512"):
        model.generate(long, "What is said?", num_beams=1, too_long="chunk")


@pytest.mark.parametrize(("name", "tokens_of_last"), [("directory", 88), ("untrained", 15)])
def test_audio_tokens_of_a_recording_of_95_seconds(request, name, tokens_of_last, long):
    """A model with `audio.tokens="clip"` does not read the tokens of the padding of the last window."""
    loaded = salmonn_jax.load(request.getfixturevalue(name))
    asked = loaded.make_request(long, "What is said?", max_new_tokens=4, too_long="chunk")
    (segment,) = asked.segments
    assert [len(window) for window in segment.clips] == [480_000, 480_000, 480_000, 80_000]
    assert [slot for slot in segment.audio_slots if slot >= 0] == list(range(3 * 88 + tokens_of_last))
    asked = loaded.make_request(long, "What is said?", max_new_tokens=4, too_long="chunk_answers")
    counts = [sum(slot >= 0 for slot in segment.audio_slots) for segment in asked.segments]
    assert counts == [88, 88, 88, tokens_of_last]


def test_options_and_ignored_tensors_are_printed(tmp_path, capsys):
    MINI.require()
    convert.main(arguments(tmp_path / "model", **{"--lora-alpha": 16}))
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


def test_base_weights_keep_their_dtype_and_fingerprint(directory):
    base = weights.load(directory / "base")
    assert base["llama/layers/q_proj/kernel"].dtype == np.float16
    assert base["whisper/conv1/kernel"].dtype == np.float32
    description = model_directory.read_config_json(directory)
    assert description["base"]["fingerprint"] == weights.fingerprint(base)


def test_a_mismatched_base_is_refused(directory, tmp_path):
    output = tmp_path / "model"
    shutil.copytree(directory, output)
    (output / "base.fingerprint").write_text("another\n")
    with pytest.raises(UserError, match=r"have changed since .* was created"):
        salmonn_jax.load(output)


def test_trainable_parts_are_initialised_without_a_checkpoint(untrained):
    delta = weights.load(untrained / "delta")
    assert not np.any(delta["llama/layers/q_proj/lora_b"])
    assert np.any(delta["qformer/layers/intermediate/kernel"])


def test_an_existing_directory_is_not_overwritten(directory, capsys):
    """It is refused before anything is read or printed."""
    before = (directory / "config.json").read_bytes()
    for command in (
        arguments(directory),
        arguments(directory, **{"--whisper": "none"}),
        ["to-torch", "salmonn", "--model", "none", "--output", str(directory)],
    ):
        with pytest.raises(UserError, match="already exists"):
            convert.main(command)
        assert capsys.readouterr() == ("", "")
    assert (directory / "config.json").read_bytes() == before


def test_an_interrupted_conversion_leaves_no_model(tmp_path, monkeypatch):
    MINI.require()
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


def test_a_full_disk_leaves_no_output(directory, tmp_path):
    """Limits files to 100 kB, as a full disk would; expects one line, exit code 1 and no half-written output."""
    commands = [
        arguments(tmp_path / "0"),
        ["to-torch", "salmonn", "--model", str(directory), "--output", str(tmp_path / "1")],
        ["to-torch", "llama", "--model", str(directory), "--output", str(tmp_path / "2")],
    ]
    words = [sys.executable, "-c", FULL_DISK, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "exit" in line] == ["exit code 1"] * 3
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(os.strerror(errno.EFBIG) in line for line in errors)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_rest_of_a_killed_conversion_is_replaced(directory, tmp_path):
    """Replaces what is left if the process is killed before config.json is written, but no file of the user."""
    output = tmp_path / "model"
    shutil.copytree(directory, tmp_path / "model.unfinished")
    (tmp_path / "model.unfinished" / "config.json").unlink()
    convert.main(arguments(output))
    salmonn_jax.load(output)
    assert not (tmp_path / "model.unfinished").exists()
    mine = tmp_path / "mine"
    (mine / "base").mkdir(parents=True)
    (mine / "base" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already exists"):
        convert.main(arguments(mine))
    assert (mine / "base" / "thesis.txt").read_text() == "years of work"


def rewritten(path: pathlib.Path, **changes) -> pathlib.Path:
    """Writes the golden checkpoint to `path` with the named entries changed."""
    import torch

    MINI.require()
    loaded = tensors.load_torch(MINI.directory / "salmonn.pth")
    torch.save(loaded | {name: change(loaded[name]) for name, change in changes.items()}, path)
    return path


def test_options_of_the_command_line_and_defaults(tmp_path, capsys):
    bare = rewritten(tmp_path / "bare.pth", config=lambda _: {})
    given = {"--second-per-window": 0.5, "--second-stride": 0.25, "--lora-alpha": 12, "--checkpoint": bare}
    convert.main(arguments(tmp_path / "given", **given))
    model = json.loads((tmp_path / "given" / "config.json").read_text())["model"]
    assert (model["qformer"]["second_per_window"], model["qformer"]["second_stride"]) == (0.5, 0.25)
    assert model["lora"]["alpha"] == 12
    capsys.readouterr()
    with pytest.raises(UserError, match="Q-Former: hidden_size=32: must be a multiple of num_attention_heads=5"):
        convert.main(arguments(tmp_path / "x", **{"--checkpoint": bare, "--qformer-num-attention-heads": 5}))
    with pytest.raises(UserError, match="Q-Former: hidden_size=32: must be a multiple of num_attention_heads=12"):
        convert.main(arguments(tmp_path / "x", **{"--checkpoint": bare, "--qformer-num-attention-heads": None}))
    convert.main(arguments(tmp_path / "plain", **{"--checkpoint": bare}))
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
        convert.main(arguments(tmp_path / "model", **changes))
    assert not list(tmp_path.iterdir())


def test_options_of_the_checkpoint(tmp_path, capsys):
    def with_options(**values):
        return lambda config: {"model": dict(config["model"]) | values}

    template = "<|user|>{}<|assistant|>"
    file = rewritten(tmp_path / "other.pth", config=with_options(prompt_template=template), epoch=lambda _: 3)
    convert.main(arguments(tmp_path / "model", **{"--checkpoint": file}))
    assert salmonn_jax.load(tmp_path / "model").config.prompt_template == template
    assert "ignored 1 key (epoch): training state" in capsys.readouterr().err
    convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "back.pth")])
    assert tensors.load_torch(tmp_path / "back.pth")["config"]["model"]["prompt_template"] == template
    file = rewritten(tmp_path / "other.pth", config=with_options(window_level_Qformer=False))
    with pytest.raises(UserError, match="window_level_Qformer=False"):
        convert.main(arguments(tmp_path / "x", **{"--checkpoint": file}))
    file = rewritten(tmp_path / "other.pth", config=with_options(lora_alpha="many"))
    with pytest.raises(UserError, match="lora_alpha='many'"):
        convert.main(arguments(tmp_path / "x", **{"--checkpoint": file}))
    file = rewritten(tmp_path / "other.pth", config=lambda _: {"model": None})
    convert.main(arguments(tmp_path / "x", **{"--checkpoint": file}))


def test_a_wrong_vicuna_is_refused(tmp_path, monkeypatch):
    MINI.require()
    wanted = dataclasses.replace(MINI.config.llama, max_position_embeddings=4096)
    monkeypatch.setitem(vicuna.RELEASED, 48, ("SALMONN-mini", "Vicuna-mini", wanted))
    with pytest.raises(UserError, match="not Vicuna-mini, which SALMONN-mini needs: max_position_embeddings is 512"):
        convert.main(arguments(tmp_path / "model"))
    convert.main([*arguments(tmp_path / "model"), "--own-checkpoint"])


def test_a_checkpoint_in_bfloat16_comes_back_byte_for_byte(tmp_path):
    import torch

    half = rewritten(
        tmp_path / "half.pth", model=lambda model: {name: value.to(torch.bfloat16) for name, value in model.items()}
    )
    convert.main(arguments(tmp_path / "model", **{"--checkpoint": half}))
    convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "back.pth")])
    theirs = checkpoint(half)
    for name in mapping.ignored_tensors(tables.SALMONN, theirs):
        del theirs[name]
    equal_bytes(checkpoint(tmp_path / "back.pth"), theirs)


def test_adapters_are_merged_in_float32_and_written_in_shards(directory, tmp_path, monkeypatch):
    """Rounds float16 weights once."""
    monkeypatch.setattr(to_torch, "MAX_SHARD_BYTES", 50_000)
    convert.main(["to-torch", "llama", "--model", str(directory), "--output", str(tmp_path / "llm")])
    sizes = [path.stat().st_size for path in (tmp_path / "llm").glob("*.safetensors")]
    assert len(sizes) > 3 and max(sizes) < 50_000 + 10_000
    _, ours = tensors.open_hf_directory(tmp_path / "llm")
    _, theirs = tensors.open_hf_directory(MINI.directory / "vicuna")
    trained = checkpoint(MINI.directory / "salmonn.pth")
    for name, tensor in ours.items():
        before, after = theirs[name].read(), tensor.read()
        if "q_proj" in name or "v_proj" in name:
            stem = "llama_model.base_model.model." + name.removesuffix(".weight")
            low, high = (trained[f"{stem}.lora_{letter}.default.weight"].read() for letter in "AB")
            expected = before.astype(np.float64) + 4.0 * high.astype(np.float64) @ low.astype(np.float64)
            assert np.abs(expected - before).max() > 0.01
            # Half a unit in the last place of float16, and what float32 makes of a sum that lies in the middle.
            assert (np.abs(after - expected) <= 0.5001 * np.spacing(np.abs(after)) + 1e-7).all()
        else:
            assert after.tobytes() == before.tobytes(), name


def test_with_new_adapters_the_language_model_comes_back_byte_for_byte(untrained, tmp_path):
    """Includes zeros of either sign."""
    convert.main(["to-torch", "llama", "--model", str(untrained), "--output", str(tmp_path / "llm")])
    _, theirs = tensors.open_hf_directory(MINI.directory / "vicuna")
    for name in mapping.ignored_tensors(tables.llama(tie_word_embeddings=False), theirs):
        del theirs[name]
    equal_bytes(tensors.open_hf_directory(tmp_path / "llm")[1], theirs)
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["torch_dtype"]) == (1, 2, "float16")
    assert (tmp_path / "llm" / "special_tokens_map.json").is_file()


def checkpoint(path: pathlib.Path) -> dict[str, tensors.LazyTensor]:
    """Opens the tensors of a SALMONN checkpoint."""
    return tensors.lazy_state_dict(tensors.load_torch(path)["model"], path, "model")


def equal_bytes(ours: dict, theirs: dict) -> None:
    """Asserts that two checkpoints hold the same tensors, byte for byte."""
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert ours[name].read().tobytes() == tensor.read().tobytes(), name


def test_the_checkpoint_comes_back_byte_for_byte(directory, tmp_path):
    output = tmp_path / "back" / "salmonn.pth"
    convert.main(["to-torch", "salmonn", "--model", str(directory), "--output", str(output)])
    theirs = checkpoint(MINI.directory / "salmonn.pth")
    for name in mapping.ignored_tensors(tables.SALMONN, theirs):
        del theirs[name]
    equal_bytes(checkpoint(output), theirs)
    with pytest.raises(UserError, match="already exists"):
        convert.main(["to-torch", "salmonn", "--model", str(directory), "--output", str(output)])
    # The checkpoint that we write names its number of Q-Former heads, which the original's does not.
    again = tmp_path / "again"
    convert.main(arguments(again, **{"--checkpoint": output, "--qformer-num-attention-heads": None}))
    one, two = (model_directory.read_config_json(place) for place in (directory, again))
    assert one["model"] == two["model"] and one["base"]["fingerprint"] == two["base"]["fingerprint"]
    assert weights.fingerprint(weights.load(directory / "delta")) == weights.fingerprint(weights.load(again / "delta"))


def test_a_model_that_the_original_cannot_run_is_not_written_in_its_format(untrained, tmp_path):
    message = r"--audio-tokens clip: .* was trained with the audio tokens of the whole window"
    with pytest.raises(UserError, match=message):
        convert.main(arguments(tmp_path / "model", **{"--audio-tokens": "clip"}))
    assert model_directory.read_config_json(untrained)["model"]["audio"]["tokens"] == "clip"
    with pytest.raises(UserError, match=r"has model\.audio\.tokens=clip.*peft"):
        convert.main(["to-torch", "salmonn", "--model", str(untrained), "--output", str(tmp_path / "x.pth")])
    assert not (tmp_path / "x.pth").exists()


def test_adapters_are_written_under_the_names_of_peft(directory, tmp_path):
    convert.main(["to-torch", "peft", "--model", str(directory), "--output", str(tmp_path / "adapter")])
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (8, 32.0, ["q_proj", "v_proj"])
    theirs = checkpoint(MINI.directory / "salmonn.pth")
    expected = {
        name.replace("llama_model.", "").replace(".default", ""): tensor
        for name, tensor in theirs.items()
        if ".lora_" in name
    }
    equal_bytes(tensors.open_state_dict(tmp_path / "adapter" / "adapter_model.safetensors"), expected)
