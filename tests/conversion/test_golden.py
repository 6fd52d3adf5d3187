"""Converts the shipped golden set by the command and loads it as a user does; compares with the original's results."""

from __future__ import annotations

import dataclasses
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
from salmonn_jax.conversion import mapping, tables, tensors, to_torch, vicuna
from salmonn_jax.errors import UserError
from tests.golden import MINI, NUM_CLIPS, relative_error

CLIPS = range(NUM_CLIPS)


def arguments(output, **changes) -> list[str]:
    """The command line that converts the golden set to `output`."""
    parts = {
        "--whisper": MINI.directory / "whisper",
        "--beats": MINI.directory / "beats.pt",
        "--llm": MINI.directory / "vicuna",
        "--checkpoint": MINI.directory / "salmonn.pth",
        "--qformer-heads": 4,
        "--output": output,
    } | changes
    return ["to-jax", "salmonn", *(str(word) for pair in parts.items() if pair[1] is not None for word in pair)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    MINI.require()
    output = tmp_path_factory.mktemp("converted") / "model"
    convert.main(arguments(output))
    return output


@pytest.fixture(scope="module")
def model(directory):
    return salmonn_jax.load(directory)


def clip(i: int) -> pathlib.Path:
    return MINI.clip_path(i)


def question(i: int) -> str:
    return MINI.expected_json["prompts"][i].removeprefix("USER: ").removesuffix("\nASSISTANT:")


@pytest.mark.parametrize("i", CLIPS)
def test_audio_tokens(model, i):
    expected = MINI.expected[f"audio_tokens_single_{i}"].reshape(88, -1)
    assert relative_error(model.encode_audio(clip(i))[0], expected) < 1e-4


@pytest.mark.parametrize("i", CLIPS)
def test_score_of_the_answer_is_the_loss(model, i):
    """With a logit of zero for [PAD], whose weights are in no checkpoint."""
    scores = model.score(clip(i), question(i), MINI.expected_json["texts"][i])
    assert -scores.mean() == pytest.approx(MINI.loss_without_pad_row(i), rel=1e-5)


def test_greedy_ids(model):
    expected = [entry["ids"][1:] for entry in MINI.expected_json["generate_greedy"]]  # without the <s> they begin with
    longest = max(len(ids) for ids in expected)
    answers = model.generate([clip(i) for i in CLIPS], [question(i) for i in CLIPS], max_new_tokens=longest)
    assert [answer.token_ids for answer in answers] == expected


def test_what_the_checkpoint_tells_and_what_is_left_out_is_printed(tmp_path, capsys):
    MINI.require()
    convert.main(arguments(tmp_path / "model", **{"--lora-alpha": 16}))
    told = capsys.readouterr().err
    assert "heads: 4 (from the command line)" in told
    assert "window_seconds: 0.333333 (from the checkpoint)" in told
    assert "lora_alpha: 16.0 (from the command line)" in told
    assert "not needed: speech_Qformer.bert.embeddings.position_ids (a counter, not a weight)" in told
    config = json.loads((tmp_path / "model" / "config.json").read_text())["model"]
    assert config["lora"] == {"rank": 8, "alpha": 16.0, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def test_weights_keep_their_dtype_and_the_fingerprint_is_theirs(directory):
    base = weights.load(directory / "base")
    assert base["llama/layers/q_proj/kernel"].dtype == np.float16
    assert base["whisper/conv1/kernel"].dtype == np.float32
    description = model_directory.read_config_json(directory)
    assert description["base"]["fingerprint"] == weights.fingerprint(base)


def test_another_base_is_refused(directory, tmp_path):
    output = tmp_path / "model"
    convert.main(arguments(output))
    (output / "base.fingerprint").write_text("another\n")
    with pytest.raises(UserError, match=r"are not those .* was made with"):
        salmonn_jax.load(output)


def test_without_a_checkpoint_the_trained_parts_are_new(tmp_path):
    MINI.require()
    convert.main(arguments(tmp_path / "model", **{"--checkpoint": None}))
    delta = weights.load(tmp_path / "model" / "delta")
    assert not np.any(delta["llama/layers/q_proj/lora_b"])
    assert np.any(delta["qformer/layers/intermediate/kernel"])


def test_nothing_is_written_over(directory):
    before = (directory / "config.json").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        convert.main(arguments(directory))
    assert (directory / "config.json").read_bytes() == before


def test_an_interrupted_conversion_is_no_model(tmp_path, monkeypatch):
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


def test_what_a_kill_leaves_is_no_model_and_not_in_the_way(directory, tmp_path):
    """Killed after the tokenizer was copied and before config.json; and a directory with what is the user's own."""
    output = tmp_path / "model"
    shutil.copytree(directory, tmp_path / "model.unfinished")
    (tmp_path / "model.unfinished" / "config.json").unlink()
    convert.main(arguments(output))
    salmonn_jax.load(output)
    assert not (tmp_path / "model.unfinished").exists()
    mine = tmp_path / "mine"
    (mine / "base").mkdir(parents=True)
    (mine / "base" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is there already"):
        convert.main(arguments(mine))
    assert (mine / "base" / "thesis.txt").read_text() == "years of work"


def rewritten(path: pathlib.Path, **changes) -> pathlib.Path:
    """The golden checkpoint with other contents."""
    import torch

    MINI.require()
    loaded = tensors.load_torch(MINI.directory / "salmonn.pth")
    torch.save(loaded | {name: change(loaded[name]) for name, change in changes.items()}, path)
    return path


def test_options_that_are_given_and_that_are_not(tmp_path, capsys):
    bare = rewritten(tmp_path / "bare.pth", config=lambda _: {})
    given = {"--second-per-window": 0.5, "--second-stride": 0.25, "--lora-alpha": 12, "--checkpoint": bare}
    convert.main(arguments(tmp_path / "given", **given))
    model = json.loads((tmp_path / "given" / "config.json").read_text())["model"]
    assert (model["qformer"]["second_per_window"], model["qformer"]["second_stride"]) == (0.5, 0.25)
    assert model["lora"]["alpha"] == 12
    capsys.readouterr()
    with pytest.raises(UserError, match="32 wide, which 5 heads do not divide"):
        convert.main(arguments(tmp_path / "x", **{"--checkpoint": bare, "--qformer-heads": 5}))
    convert.main(arguments(tmp_path / "plain", **{"--checkpoint": bare, "--qformer-heads": None}))
    told = capsys.readouterr().err
    for line in ("heads: 12", "window_seconds: 0.333333", "stride_seconds: 0.333333", "lora_alpha: 32.0"):
        assert f"{line} (from the original's default)" in told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--qformer-heads": 0}, "0 heads do not divide"),
        ({"--second-per-window": 60}, "does not lie within the 30 s heard"),
        ({"--second-per-window": -1}, "does not lie within the 30 s heard"),
        ({"--second-stride": 0}, "windows cannot follow each other by 0.0 s"),
        ({"--checkpoint": None, "--qformer-heads": 5}, "768 wide, which 5 heads do not divide"),
        ({"--beats": None}, "was trained with BEATs"),
        ({"--llm": MINI.directory / "whisper"}, "model of type 'whisper', not llama or mistral"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path, changes, says):
    MINI.require()
    with pytest.raises(UserError, match=says):
        convert.main(arguments(tmp_path / "model", **changes))
    assert not list(tmp_path.iterdir())


def test_what_the_checkpoint_s_configuration_says_is_heeded(tmp_path, capsys):
    def told(**values):
        return lambda config: {"model": dict(config["model"]) | values}

    template = "<|user|>{}<|assistant|>"
    file = rewritten(tmp_path / "other.pth", config=told(prompt_template=template), epoch=lambda _: 3)
    convert.main(arguments(tmp_path / "model", **{"--checkpoint": file}))
    assert salmonn_jax.load(tmp_path / "model").config.prompt_template == template
    assert "not needed: epoch (a conversion begins training anew)" in capsys.readouterr().err
    convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "back.pth")])
    assert tensors.load_torch(tmp_path / "back.pth")["config"]["model"]["prompt_template"] == template
    file = rewritten(tmp_path / "other.pth", config=told(window_level_Qformer=False))
    with pytest.raises(UserError, match="window_level_Qformer=False"):
        convert.main(arguments(tmp_path / "x", **{"--checkpoint": file}))
    file = rewritten(tmp_path / "other.pth", config=told(lora_alpha="many"))
    with pytest.raises(UserError, match="lora_alpha='many'"):
        convert.main(arguments(tmp_path / "x", **{"--checkpoint": file}))
    file = rewritten(tmp_path / "other.pth", config=lambda _: {"model": None})
    convert.main(arguments(tmp_path / "x", **{"--checkpoint": file}))


def test_the_wrong_vicuna_is_refused_by_the_command(tmp_path, monkeypatch):
    MINI.require()
    wanted = dataclasses.replace(MINI.config.llama, max_position_embeddings=4096)
    monkeypatch.setitem(vicuna.RELEASED, 48, ("SALMONN-mini", "Vicuna-mini", wanted))
    with pytest.raises(UserError, match="not Vicuna-mini, which SALMONN-mini wants: max_position_embeddings is 512"):
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


def test_a_language_model_is_merged_in_float32_and_cut_into_files(directory, tmp_path, monkeypatch):
    """Float16 weights, rounded once."""
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


def test_with_new_adapters_the_language_model_comes_back_byte_for_byte(tmp_path):
    """Zeros of either sign too."""
    MINI.require()
    convert.main(arguments(tmp_path / "model", **{"--checkpoint": None, "--qformer-heads": None}))
    convert.main(["to-torch", "llama", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "llm")])
    _, theirs = tensors.open_hf_directory(MINI.directory / "vicuna")
    for name in mapping.ignored_tensors(tables.llama(tie_word_embeddings=False), theirs):
        del theirs[name]
    equal_bytes(tensors.open_hf_directory(tmp_path / "llm")[1], theirs)
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["torch_dtype"]) == (1, 2, "float16")
    assert (tmp_path / "llm" / "special_tokens_map.json").is_file()


def checkpoint(path: pathlib.Path) -> dict[str, tensors.LazyTensor]:
    return tensors.lazy_state_dict(tensors.load_torch(path)["model"], path, "model")


def equal_bytes(ours: dict, theirs: dict) -> None:
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
    with pytest.raises(UserError, match="is there already"):
        convert.main(["to-torch", "salmonn", "--model", str(directory), "--output", str(output)])
    # It tells all that its tensors cannot, the heads included.
    again = tmp_path / "again"
    convert.main(arguments(again, **{"--checkpoint": output, "--qformer-heads": None}))
    one, two = (model_directory.read_config_json(place) for place in (directory, again))
    assert one["model"] == two["model"] and one["base"]["fingerprint"] == two["base"]["fingerprint"]
    assert weights.fingerprint(weights.load(directory / "delta")) == weights.fingerprint(weights.load(again / "delta"))


def test_what_the_original_would_run_wrong_is_not_written_for_it(tmp_path):
    MINI.require()
    with pytest.raises(UserError, match=r"reads all audio tokens; --audio-tokens clip is for one"):
        convert.main(arguments(tmp_path / "model", **{"--audio-tokens": "clip"}))
    convert.main(arguments(tmp_path / "model", **{"--audio-tokens": "clip", "--checkpoint": None}))
    assert model_directory.read_config_json(tmp_path / "model")["model"]["audio"]["tokens"] == "clip"
    with pytest.raises(UserError, match=r"has model\.audio\.tokens=clip.*peft"):
        convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "x.pth")])
    assert not (tmp_path / "x.pth").exists()


def test_the_adapters_come_out_as_peft_names_them(directory, tmp_path):
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
