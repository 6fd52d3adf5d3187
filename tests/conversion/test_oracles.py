"""Conversion by the command, compared layer by layer with the packages that define the formats, and written back."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

import salmonn_jax
from launch import convert
from salmonn_jax import weights
from salmonn_jax.conversion.comparison import compare
from salmonn_jax.conversion.comparison.compare import CheckpointPaths
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError
from tests import golden, torch_checkpoints

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
NEW_TOKENS = 24
CLIP = golden.MINI.clip_path(0)
DUCK = golden.SHARED / "audio" / "duck.wav"
QUESTION = "What is heard in this clip, and how many ducks are there in it, if there are any?"


def run(*words: object) -> None:
    convert.main([str(word) for word in words])


def agree(model: pathlib.Path, files: CheckpointPaths, *, layers: int, clip: object = CLIP) -> None:
    """Asserts that the activations of every layer agree with PyTorch."""
    found = list(compare.compare(model, files, clip, QUESTION))
    assert len(found) >= layers
    for difference in found:
        assert difference.relative_error < 2e-5, difference


def equal_tensors(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Asserts that two Hugging Face directories hold the same tensors, byte for byte."""
    (_, back), (_, source) = tensors.open_hf_directory(ours), tensors.open_hf_directory(theirs)
    assert set(back) == set(source)
    for name, tensor in source.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape, name
        assert back[name].read().tobytes() == tensor.read().tobytes(), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "head_dim": 16, "rope_parameters": LLAMA3_ROPE},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 200},
        {"model_type": "qwen2", "num_key_value_heads": 2, "rope_parameters": {"rope_theta": 1e6}},
        {"model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "rope_parameters": {"rope_theta": 1e6}},
        {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}
        | {"attention_bias": True},
    ],
    ids=["llama 1", "SmolLM2", "llama 3", "biases", "mistral", "qwen2", "qwen2 tied", "qwen3", "qwen3 tied, biases"],
)
def test_a_language_model(changes, tmp_path):
    """Compares layers and logits, and 24 greedy tokens, which are decoded with a KV cache."""
    torch_checkpoints.require_packages()
    llm = torch_checkpoints.write_llama(tmp_path / "llm", **changes)
    run("to-jax", "llama", "--llm", llm, "--output", tmp_path / "model")
    agree(tmp_path / "model", CheckpointPaths(llm=llm), layers=5)
    run("to-torch", "llama", "--model", tmp_path / "model", "--output", tmp_path / "back")
    equal_tensors(tmp_path / "back", llm)
    agree(tmp_path / "model", CheckpointPaths(llm=tmp_path / "back"), layers=5)
    model = salmonn_jax.load(tmp_path / "model")
    (answer,) = model.generate(None, QUESTION, num_beams=1, max_new_tokens=NEW_TOKENS)
    prompt = model.tokenizer.encode(QUESTION)
    assert answer.token_ids == torch_greedy(llm, [model.tokenizer.bos_token_id, *prompt])


def torch_greedy(llm: pathlib.Path, prompt: list[int]) -> list[int]:
    """Returns the tokens that transformers decodes greedily after `prompt`."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    tokens = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_language_model_of_half_precision_comes_back_byte_for_byte(dtype, tmp_path):
    torch_checkpoints.require_packages()
    llm = torch_checkpoints.write_llama(tmp_path / "llm", dtype=dtype)
    run("to-jax", "llama", "--llm", llm, "--output", tmp_path / "model")
    assert {str(x.dtype) for x in weights.open_params(tmp_path / "model" / "base").values()} == {dtype}
    run("to-torch", "llama", "--model", tmp_path / "model", "--output", tmp_path / "back")
    equal_tensors(tmp_path / "back", llm)


@pytest.mark.parametrize("changes", [{}, {"num_mel_bins": 128, "encoder_layers": 3}])
def test_whisper(changes, tmp_path):
    torch_checkpoints.require_packages()
    source = torch_checkpoints.write_whisper(tmp_path / "whisper", **changes)
    run("to-jax", "whisper", "--whisper", source, "--output", tmp_path / "model")
    agree(tmp_path / "model", CheckpointPaths(whisper=source), layers=5)
    with pytest.raises(UserError, match="has no component from --llm"):
        next(compare.compare(tmp_path / "model", CheckpointPaths(llm=source), CLIP, QUESTION))
    with pytest.raises(UserError, match="has no language model"):
        salmonn_jax.load(tmp_path / "model").generate(None, QUESTION)


def test_whisper_in_openai_s_files(tmp_path):
    torch_checkpoints.require_packages("whisper")
    source = torch_checkpoints.write_openai_whisper(tmp_path / "tiny.pt")
    run("to-jax", "whisper", "--whisper", source, "--output", tmp_path / "model")
    agree(tmp_path / "model", CheckpointPaths(whisper=source), layers=5)


@pytest.mark.parametrize("changes", [{}, {"conv_pos": 15, "max_distance": 100, "encoder_layers": 2}])
def test_beats(changes, tmp_path):
    torch_checkpoints.require_packages("openbeats")
    source = torch_checkpoints.write_beats(tmp_path / "beats.pt", **changes)
    run("to-jax", "beats", "--beats", source, "--output", tmp_path / "model")
    agree(tmp_path / "model", CheckpointPaths(beats=source), layers=4)


@pytest.mark.parametrize(
    ("golden_set", "layers"),
    [pytest.param(golden.MINI, 20, id="mini"), pytest.param(golden.TINY, 19, id="tiny", marks=pytest.mark.slow)],
)
def test_the_golden_salmonn(golden_set, layers, tmp_path):
    """Compares with the packages here what `tests/models/test_golden.py` compares with the original."""
    torch_checkpoints.require_packages("peft", "openbeats")
    golden_set.require()
    folder = golden_set.directory
    files = CheckpointPaths(
        whisper=folder / "whisper", beats=folder / "beats.pt", llm=folder / "vicuna", checkpoint=folder / "salmonn.pth"
    )
    words = ["--whisper", files.whisper, "--beats", files.beats, "--llm", files.llm, "--checkpoint", files.checkpoint]
    run("to-jax", "salmonn", *words, "--qformer-num-attention-heads", 4, "--output", tmp_path / "model")
    agree(tmp_path / "model", files, layers=layers, clip=golden_set.clip_path(0))


ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SALMONNS = {
    "overlapping windows, two queries, adapters everywhere": {
        "config": {
            "num_speech_query_token": 2,
            "second_per_window": 0.5,
            "second_stride": 0.2,
            "lora_rank": 4,
            "lora_alpha": 12,
        },
        "target_modules": ALL_PROJECTIONS,
    },
    "Qwen2.5, adapters on projections with biases": {
        "config": {
            "num_speech_query_token": 1,
            "second_per_window": 0.4,
            "second_stride": 0.4,
            "lora_rank": 3,
            "lora_alpha": 6,
        },
        "target_modules": ALL_PROJECTIONS,
        "llm": {"model_type": "qwen2"},
    },
    "Qwen3 with biases, adapters on two projections": {
        "config": {
            "num_speech_query_token": 1,
            "second_per_window": 0.5,
            "second_stride": 0.5,
            "lora_rank": 2,
            "lora_alpha": 4,
        },
        "target_modules": ("k_proj", "o_proj"),
        "llm": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    },
    "no BEATs, gaps between windows, three layers": {
        "config": {
            "num_speech_query_token": 1,
            "second_per_window": 0.3,
            "second_stride": 0.4,
            "lora_rank": 16,
            "lora_alpha": 16,
        },
        "target_modules": ("v_proj",),
        "num_hidden_layers": 3,
    },
    "no adapters": {
        "config": {"num_speech_query_token": 3, "second_per_window": 1.0, "second_stride": 1.0, "lora": False}
        | {"lora_rank": 1},
        "target_modules": (),
        "num_attention_heads": 2,
    },
}


DEFAULT_SHAPE = "overlapping windows, two queries, adapters everywhere"
SHAPES = [pytest.param(name, id=name, marks=() if name == DEFAULT_SHAPE else pytest.mark.slow) for name in SALMONNS]


@pytest.fixture(scope="module", params=SHAPES)
def assembled(request, tmp_path_factory) -> tuple[pathlib.Path, CheckpointPaths]:
    """Returns a converted SALMONN of one of the shapes above, and the files it comes from."""
    torch_checkpoints.require_packages("peft", "openbeats")
    folder, shape = tmp_path_factory.mktemp("assembled"), dict(SALMONNS[request.param])
    sound = None if "no BEATs" in request.param else torch_checkpoints.write_beats(folder / "beats.pt")
    llm = torch_checkpoints.write_llama(folder / "llm", num_key_value_heads=2, **shape.pop("llm", {}))
    checkpoint = torch_checkpoints.write_salmonn(
        folder / "x.pth", encoder_hidden_size=32 + (32 if sound else 0), llm=llm, **shape
    )
    files = CheckpointPaths(
        whisper=torch_checkpoints.write_whisper(folder / "whisper"), beats=sound, llm=llm, checkpoint=checkpoint
    )
    given = ["--beats", sound] if sound else []
    words = ["--whisper", files.whisper, *given, "--llm", llm, "--checkpoint", checkpoint]
    run(
        "to-jax",
        "salmonn",
        *words,
        "--qformer-num-attention-heads",
        shape.get("num_attention_heads", 4),
        "--output",
        folder / "model",
    )
    return folder / "model", files


def test_a_salmonn_of_another_shape(assembled):
    model, files = assembled
    agree(model, files, layers=15)
    for clip in (1, 2):  # of other lengths
        agree(model, files, layers=15, clip=golden.MINI.clip_path(clip))


def test_its_checkpoint_comes_back_byte_for_byte(assembled, tmp_path):
    model, files = assembled
    run("to-torch", "salmonn", "--model", model, "--output", tmp_path / "back.pth")
    back, source = (tensors.load_torch(path)["model"] for path in (tmp_path / "back.pth", files.checkpoint))
    del source["speech_Qformer.bert.embeddings.position_ids"]
    assert set(back) == set(source)
    for name, value in source.items():
        assert back[name].dtype == value.dtype and back[name].numpy().tobytes() == value.numpy().tobytes(), name


def test_its_adapters_are_peft_s_and_merge_as_peft_merges(assembled, tmp_path):
    import torch
    import transformers

    peft = pytest.importorskip("peft")
    model, files = assembled
    if "lora_A" not in "".join(tensors.load_torch(files.checkpoint)["model"]):
        with pytest.raises(UserError, match="has no adapters"):
            run("to-torch", "peft", "--model", model, "--output", tmp_path / "adapter")
        return
    run("to-torch", "peft", "--model", model, "--output", tmp_path / "adapter")
    run("to-torch", "llama", "--model", model, "--output", tmp_path / "merged")
    base = transformers.AutoModelForCausalLM.from_pretrained(files.llm, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    _, ours = tensors.open_hf_directory(tmp_path / "merged")
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor.read(), theirs[name].numpy(), rtol=1e-6, atol=1e-6, err_msg=name)


def test_first_mismatching_layer_is_named(tmp_path, capsys):
    """Changes a weight in the second layer of BEATs. The command must report that layer and none before it."""
    torch_checkpoints.require_packages("openbeats")
    source = torch_checkpoints.write_beats(tmp_path / "beats.pt")
    run("to-jax", "beats", "--beats", source, "--output", tmp_path / "model")
    params = dict(weights.load(tmp_path / "model" / "base"))
    params["beats/layers/fc1/kernel"] = params["beats/layers/fc1/kernel"].at[1].mul(1.1)
    (tmp_path / "model" / "base.fingerprint").unlink()
    fingerprint = weights.save(tmp_path / "model" / "base", params)
    (tmp_path / "model" / "base.fingerprint").write_text(fingerprint)
    description = json.loads((tmp_path / "model" / "config.json").read_text())
    description["base"]["fingerprint"] = fingerprint
    (tmp_path / "model" / "config.json").write_text(json.dumps(description))
    with pytest.raises(SystemExit) as stopped:
        run("compare", "--model", tmp_path / "model", "--beats", source, CLIP)
    assert stopped.value.code == 1
    told = capsys.readouterr().out.splitlines()
    assert "first mismatching layer: beats layer 2" in told[-1]
    (first,) = [line for line in told if line.startswith("beats layer 1 ")]
    (second,) = [line for line in told if line.startswith("beats layer 2 ")]
    assert "<- mismatch" in second and "<- mismatch" not in first


@pytest.mark.slow
def test_real_whisper(real_weights, tmp_path):
    source = real_weights / "whisper-base"
    run("to-jax", "whisper", "--whisper", source, "--output", tmp_path / "model")
    for clip in ("duck.wav", "mountain.wav"):
        found = list(
            compare.compare(
                tmp_path / "model", CheckpointPaths(whisper=source), golden.SHARED / "audio" / clip, QUESTION
            )
        )
        assert len(found) == 9
        assert all(difference.relative_error < 1e-4 for difference in found), found


@pytest.mark.slow
def test_real_language_model(real_weights, tmp_path):
    source = real_weights / "smollm2-135m"
    run("to-jax", "llama", "--llm", source, "--output", tmp_path / "model")
    found = list(compare.compare(tmp_path / "model", CheckpointPaths(llm=source), DUCK, "The capital of France is"))
    assert len(found) == 32
    assert all(difference.relative_error < 1e-4 for difference in found), found
    model = salmonn_jax.load(tmp_path / "model")
    asked = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    plain, chat = model.generate([None, None], ["The capital of France is", asked], num_beams=1, max_new_tokens=16)
    assert plain.text.startswith(" Paris")
    assert "Paris" in chat.text and chat.finish_reason == "stop"
    run("to-torch", "llama", "--model", tmp_path / "model", "--output", tmp_path / "back")
    equal_tensors(tmp_path / "back", source)


@pytest.mark.slow
def test_real_chat_model_answers_as_in_transformers(real_weights, tmp_path):
    """64 greedy tokens after the chat template of SmolLM2, in float32, with no option that names the template."""
    import torch
    import transformers

    source, question = real_weights / "smollm2-135m", "Write a story about a dog and a duck."
    words = ["--whisper", real_weights / "whisper-base", "--llm", source]
    run("to-jax", "salmonn", *words, "--output", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    llm = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    theirs = llm.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    model = salmonn_jax.load(tmp_path / "model")
    (ours,) = model.generate([None], question, num_beams=1, max_new_tokens=64)
    assert len(theirs) == 64 and ours.token_ids == theirs
    (stopped,) = model.generate([None], "What is the capital of France?", num_beams=1, max_new_tokens=64)
    assert "Paris" in stopped.text and "<|im_end|>" not in stopped.text
    assert (stopped.finish_reason, stopped.token_ids[-1]) == ("stop", tokenizer.convert_tokens_to_ids("<|im_end|>"))
