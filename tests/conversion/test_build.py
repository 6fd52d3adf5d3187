"""Models to be trained: built by the command from an encoder and a language model, without a SALMONN checkpoint.

transformers renders the chat templates as the oracle.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import salmonn_jax
from data_pipelines.examples import Example
from data_pipelines.transforms.encode import encode_config, encode_example
from data_pipelines.transforms.prompt_templates import PromptTemplates
from launch import convert
from salmonn_jax import model_directory, weights
from salmonn_jax.config import DataConfig, LlamaConfig, LoraConfig, ModelConfig, QFormerConfig, from_dict
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.conversion import mapping, to_jax
from salmonn_jax.conversion.comparison import compare
from salmonn_jax.conversion.comparison.compare import CheckpointPaths
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.conversion.settings.options import SalmonnOptions, lora_config, qformer_config, resolve_settings
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import PROMPT_TEMPLATES, encode_prompt
from salmonn_jax.tokenizer import load_tokenizer
from tests import torch_checkpoints
from tests.golden import MINI
from tests.llm_families import FAMILIES, STOP_TOKENS, write_stop_tokens

QUESTION = "what is heard in this clip?"


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> pathlib.Path:
    torch_checkpoints.require_packages("tokenizers")
    return torch_checkpoints.write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def llms(tmp_path_factory) -> dict[str, pathlib.Path]:
    """A language model of each family. Tests change copies of them."""
    torch_checkpoints.require_packages("tokenizers")
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in FAMILIES.items()}


def build(whisper: pathlib.Path, llm: pathlib.Path, output: pathlib.Path, *options: object) -> ModelConfig:
    """Converts with these options and returns the configuration of the model."""
    words = ["--whisper", whisper, "--llm", llm, *options, "--output", output]
    convert.main(["to-jax", "salmonn", *map(str, words)])
    return from_dict(ModelConfig, model_directory.read_config_json(output)["model"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_that_of_the_chat_template(family, whisper, llms, tmp_path, capsys):
    import transformers

    config = build(whisper, llms[family], tmp_path / "model")
    assert config.stop_token_ids == STOP_TOKENS[family] and not config.add_bos_token
    shown = capsys.readouterr().out
    assert f"prompt template: {family} (from the chat template of {llms[family]}" in shown
    assert repr(config.prompt_template) in shown
    chat = [{"role": "user", "content": QUESTION}]
    options = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
    tokenizer = load_tokenizer(tmp_path / "model")
    ours = encode_prompt(
        tokenizer,
        config.prompt_template,
        QUESTION,
        valid_audio_token_counts=[],
        num_audio_tokens=88,
        add_bos_token=config.add_bos_token,
    ).tokens
    if family == "mistral":  # transformers does not read sentencepiece files any more
        assert config.prompt_template == "<s>[INST] {} [/INST]"
        assert ours == [1, *tokenizer.encode(f"[INST] {QUESTION} [/INST]")]
        return
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(llms[family])
    text = theirs.apply_chat_template(chat, tokenize=False, **options)
    assert config.prompt_template.replace("{}", QUESTION) == text
    assert ours == theirs.apply_chat_template(chat, tokenize=True, return_dict=False, **options)


@pytest.mark.parametrize(
    ("family", "stop"),
    [("llama3", 4), pytest.param("llama3", 1, marks=pytest.mark.slow), ("chatml", 0), ("mistral", 2)],
)
def test_generation_stops_at_each_stop_token(family, stop, whisper, llms, tmp_path):
    """The language model is made to answer "a dog" and then the stop token."""
    llm = shutil.copytree(llms[family], tmp_path / "llm")
    tokenizer = load_tokenizer(llm)
    answer = tokenizer.encode("a dog")
    last_of_prompt = tokenizer.encode(PROMPT_TEMPLATES[family].text)[-1]
    torch_checkpoints.chain_tokens(llm, [last_of_prompt, *answer, stop])
    build(whisper, llm, tmp_path / "model")
    (generation,) = salmonn_jax.load(tmp_path / "model").generate([None], QUESTION, num_beams=1, max_new_tokens=8)
    assert generation.token_ids == [*answer, stop]
    assert (generation.text, generation.finish_reason) == ("a dog", "stop")


def test_a_stop_token_that_is_an_ordinary_token_is_not_in_the_text(whisper, llms, tmp_path):
    llm = shutil.copytree(llms["chatml"], tmp_path / "llm")
    tokenizer = load_tokenizer(llm)
    first, stop = tokenizer.encode("a b")[0], tokenizer.encode("?")[0]
    write_stop_tokens(llm, stop)
    last_of_prompt = tokenizer.encode("\n")[-1]
    torch_checkpoints.chain_tokens(llm, [last_of_prompt, first, stop])
    config = build(whisper, llm, tmp_path / "model")
    assert config.stop_token_ids == (2, stop)
    (generation,) = salmonn_jax.load(tmp_path / "model").generate([None], QUESTION, num_beams=1, max_new_tokens=8)
    assert (generation.token_ids, generation.text, generation.finish_reason) == ([first, stop], "a", "stop")


def test_answers_in_training_end_with_the_end_of_a_turn(whisper, llms, tmp_path):
    """LLaMA 3 ends a turn with another token than a text."""
    config = build(whisper, llms["llama3"], tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    example = Example(id="0", audio=None, prompt=QUESTION, answer="a dog", task="asr", source="")
    segment = encode_example(
        example,
        0,
        source_index=0,
        tokenizer=tokenizer,
        prompt_templates=PromptTemplates("here", {}),
        config=encode_config(config, DataConfig()),
    )
    assert segment.tokens[segment.prompt_length :] == [*tokenizer.encode("a dog"), tokenizer.token_to_id("<|eot_id|>")]
    assert segment.tokens.count(tokenizer.bos_token_id) == 1


def test_without_chat_template_the_prompt_is_the_original_s(whisper, tmp_path, capsys):
    llm = torch_checkpoints.write_llama(tmp_path / "llm", num_hidden_layers=1)
    config = build(whisper, llm, tmp_path / "model")
    assert (config.prompt_template, config.add_bos_token, config.stop_token_ids) == ("USER: {}\nASSISTANT:", True, (2,))
    assert "prompt template: vicuna (the original's default: " in (shown := capsys.readouterr().out)
    assert "after the tokenizer's start token: 'USER: {}\\nASSISTANT:'" in shown


@pytest.mark.parametrize(
    ("family", "option", "template", "stops", "add_bos"),
    [
        ("llama3", "llama3", PROMPT_TEMPLATES["llama3"].text, (4, 1), True),
        ("chatml", "chatml", PROMPT_TEMPLATES["chatml"].text, (2, 0), True),
        ("chatml", "vicuna", PROMPT_TEMPLATES["vicuna"].text, (2, 0), True),
        ("mistral", "mistral", "[INST] {} [/INST]", (2,), True),
        ("llama3", r"Q: {}\nA:", "Q: {}\nA:", (1, 4), True),
        ("llama3", "<|begin_of_text|>{} =", "<|begin_of_text|>{} =", (1, 4), False),
    ],
)
def test_a_template_that_is_given(family, option, template, stops, add_bos, whisper, llms):
    config = to_jax.plan_salmonn(whisper, None, llms[family], None, SalmonnOptions(prompt_template=option)).config
    assert (config.prompt_template, config.stop_token_ids, config.add_bos_token) == (template, stops, add_bos)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt-template", ""], "--prompt-template is empty; give a name, or a text with {}"),
        (["--prompt-template", "chatlm"], "unknown prompt template 'chatlm'; did you mean 'chatml'?"),
        (["--prompt-template", "USER: ASSISTANT:"], "a text must contain {}, the place of the prompt"),
        (["--prompt-template", "{} {}"], "exactly once"),
        (["--prompt-template", "<SpeechHere>{}"], "<SpeechHere> belongs to the prompt"),
        (["--prompt-template", "llama3"], "has no token <|start_header_id|>; choose another template"),
        (["--audio-window-seconds", 40], "--audio-window-seconds 40.0: must be at most 30"),
        (["--audio-window-seconds", 0], "audio: window_seconds=0.0: must be greater than 0"),
        (["--audio-window-seconds", 1.01], "audio: window_seconds=1.01: must be a multiple of 0.02"),
        (["--audio-window-seconds", 0.2], "--second-per-window 0.333333: must be <= 0.2"),
        (["--qformer-hidden-size", 0], "Q-Former: hidden_size=0: must be greater than 0"),
        (["--qformer-hidden-size", 200], "Q-Former: hidden_size=200: must be a multiple of num_attention_heads=3"),
        (["--qformer-num-attention-heads", 5], "Q-Former: hidden_size=64: must be a multiple of num_attention_heads=5"),
        (["--qformer-num-hidden-layers", -1], "Q-Former: num_hidden_layers=-1: must be greater than 0"),
        (["--qformer-intermediate-size", 0], "Q-Former: intermediate_size=0: must be greater than 0"),
        (["--num-speech-query-token", 0], "Q-Former: num_speech_query_token=0: must be greater than 0"),
        (["--num-speech-query-token", 9], "792 audio tokens of one window has at least 8"),
        (["--second-per-window", "nan"], "Q-Former: second_per_window=NaN: must be a finite number"),
        (["--second-stride", 0.001], "must be at least 0.02, one encoder frame"),
        (["--lora-rank", 0], "LoRA: rank=0: must be greater than 0"),
        (["--lora-rank", 49], "LoRA: rank=49: must be at most 48, the hidden size of the LLM"),
        (["--lora-alpha", -1], "LoRA: alpha=-1.0: must be greater than 0"),
        (["--lora-target-modules", "q_proj", "w_proj"], "LoRA: target_modules.1=\"w_proj\": must be 'q_proj', "),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, whisper, llms, tmp_path, monkeypatch):
    # The first to read weights is the comparison of tied weights.
    monkeypatch.setattr(mapping, "check_copies", lambda *_: pytest.fail("weights are read before the options are"))
    with pytest.raises(UserError) as refused:
        build(whisper, llms["chatml"], tmp_path / "model", *options)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", "{{ raise_exception('two\nlines') }}", "cannot be rendered (two lines); choose a"),
        ("chat_template.jinja", "{% if %}", "cannot be rendered ("),
        ("chat_template.jinja", "{{ strftime_now('%d') }}{{ messages[0].content }}", "'strftime_now' is undefined"),
        ("chat_template.jinja", "Hello.", "gives 'Hello.', which must contain {}"),
        ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "chat_template": 3}', "a chat_template that is no text"),
        (
            "generation_config.json",
            '{"eos_token_id": 320}',
            "has eos_token_id=320; the tokenizer has ids from 0 to ",
        ),
        ("generation_config.json", '{"eos_token_id": [2, "x"]}', 'has eos_token_id=[2, "x"]'),
        ("generation_config.json", "[", "is not JSON"),
    ],
)
def test_wrong_files_of_a_language_model_are_refused(file, content, message, whisper, llms, tmp_path):
    llm = shutil.copytree(llms["chatml"], tmp_path / "llm")
    (llm / file).write_text(content)
    with pytest.raises(UserError) as refused:
        build(whisper, llm, tmp_path / "model")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "model").exists()


def test_a_refused_option_is_one_line_and_exit_code_2(whisper, llms, tmp_path):
    words = ["--whisper", whisper, "--llm", llms["chatml"], "--lora-rank", "0", "--output", tmp_path / "model"]
    command = [sys.executable, "-m", "launch.convert", "to-jax", "salmonn", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: LoRA: rank=0: must be greater than 0\n"


def test_every_size_can_be_chosen(whisper, llms, tmp_path, capsys):
    options = {
        "--qformer-hidden-size": 32,
        "--qformer-num-hidden-layers": 1,
        "--qformer-num-attention-heads": 4,
        "--qformer-intermediate-size": 48,
        "--num-speech-query-token": 2,
        "--second-per-window": 0.5,
        "--second-stride": 0.25,
        "--lora-rank": 4,
        "--audio-tokens": "clip",
    }
    words = [word for pair in options.items() for word in pair]
    config = build(whisper, llms["chatml"], tmp_path / "model", *words, "--lora-target-modules", "k_proj", "down_proj")
    assert config.qformer == QFormerConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        num_speech_query_token=2,
        second_per_window=0.5,
        second_stride=0.25,
    )
    assert config.lora == LoraConfig(rank=4, alpha=16.0, target_modules=("k_proj", "down_proj"))
    assert (config.audio.tokens, config.pad_classes) == ("clip", 0)
    shown = capsys.readouterr().out.splitlines()
    assert "qformer_hidden_size: 32 (from the command line)" in shown
    assert "lora_alpha: 16.0 (default: 4 times the rank)" in shown
    assert "lora_target_modules: k_proj down_proj (from the command line)" in shown
    assert "second_stride: 0.25 (from the command line)" in shown
    delta = weights.open_params(tmp_path / "model" / "delta")
    assert delta["query_tokens"].shape == (2, 32)
    assert {path.split("/")[2] for path in delta if "lora" in path} == {"k_proj", "down_proj"}


def test_the_summary_counts_the_parameters(whisper, llms, tmp_path, capsys):
    build(whisper, llms["chatml"], tmp_path / "model", "--lora-target-modules")
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}
    size = {
        part: sum(int(np.prod(x.shape)) for x in weights.open_params(tmp_path / "model" / part).values())
        for part in ("base", "delta")
    }
    assert rows["total"][:3] == [f"{sum(size.values()):,}", f"{size['base']:,}", "frozen,"]
    assert rows["qformer"][1] == "new" and rows["whisper"][1] == "frozen"
    assert rows["beats"] == rows["adapters"] == ["none"]
    assert "audio: windows of 30 s; a prompt has the audio tokens of the whole window: 88" in shown
    assert "stop tokens: <|im_end|> (2), <|endoftext|> (0); answers in training end with <|im_end|> (2)" in shown


@pytest.mark.parametrize("model", [MODEL_7B, MODEL_13B], ids=["7B", "13B"])
def test_defaults_for_the_original_s_language_models_are_the_original_s(model):
    resolved = resolve_settings(SalmonnOptions(), model.llama, None, {}, {})
    assert qformer_config(resolved, 30.0) == model.qformer == QFormerConfig()
    assert lora_config(resolved, model.llama) == model.lora == LoraConfig()
    origins = {setting.origin for name, setting in resolved.items() if name != "pad_classes"}
    assert origins == {"the original's default"}


@pytest.mark.parametrize(("llm", "qformer"), [(48, 64), (576, 576), (600, 576), (768, 768), (896, 768)])
def test_the_q_former_is_not_wider_than_the_language_model(llm, qformer):
    llama = LlamaConfig(hidden_size=llm, num_attention_heads=1, num_key_value_heads=1)
    config = qformer_config(resolve_settings(SalmonnOptions(), llama, None, {}, {}), 30.0)
    assert (config.hidden_size, config.intermediate_size) == (qformer, 4 * qformer)
    assert config.num_attention_heads * 64 == qformer


def test_a_shorter_window_cuts_the_position_table(whisper, llms, tmp_path, capsys):
    """The encoder then equals that of transformers with the same cut."""
    config = build(whisper, llms["chatml"], tmp_path / "model", "--audio-window-seconds", 4)
    assert (config.audio.window_seconds, config.num_audio_tokens) == (4.0, 11)
    shown = capsys.readouterr().out
    assert "a prompt has the audio tokens of the whole window: 11" in shown
    assert "position table is cut from 30 s to 4 s: Whisper reads a shorter input than the one it was trained" in shown
    _, whole = tensors.open_hf_directory(whisper)
    (table,) = [value for name, value in whole.items() if name.endswith("encoder.embed_positions.weight")]
    cut = weights.load(tmp_path / "model" / "base")["whisper/positions"]
    np.testing.assert_array_equal(cut, table.read()[:200])
    for clip in (0, 1):
        found = list(
            compare.compare(
                tmp_path / "model",
                CheckpointPaths(whisper=whisper),
                MINI.clip_path(clip),
                QUESTION,
                too_long="truncate",
            )
        )
        assert len(found) == 5 and all(difference.relative_error < 2e-5 for difference in found), found
    with pytest.raises(UserError, match=r"has model\.audio\.window_seconds=4: the original always encodes 30 s"):
        convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "x.pth")])
    assert not (tmp_path / "x.pth").exists()


def test_a_new_model_comes_back_from_its_pth(whisper, llms, tmp_path):
    """Template, stop tokens and sizes are in the file, so no option is needed."""
    options = ["--lora-rank", 4, "--num-speech-query-token", 2, "--second-stride", 0.5]
    config = build(whisper, llms["llama3"], tmp_path / "model", *options)
    convert.main(["to-torch", "salmonn", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "x.pth")])
    again = build(whisper, llms["llama3"], tmp_path / "again", "--checkpoint", tmp_path / "x.pth", "--own-checkpoint")
    assert again == config
    delta, back = (weights.fingerprint(weights.load(tmp_path / name / "delta")) for name in ("model", "again"))
    assert delta == back
    with pytest.raises(UserError, match=r"--lora-rank 4: .*x\.pth determines it; omit this option or --checkpoint"):
        build(whisper, llms["llama3"], tmp_path / "no", "--checkpoint", tmp_path / "x.pth", "--lora-rank", 4)
    with pytest.raises(UserError, match=r"--audio-window-seconds 10\.0: the model of .* omit this option"):
        words = ["--checkpoint", tmp_path / "x.pth", "--audio-window-seconds", 10]
        build(whisper, llms["llama3"], tmp_path / "no", *words)


def test_the_language_model_is_written_with_all_stop_tokens(whisper, llms, tmp_path):
    """transformers then stops where the trained model stops."""
    build(whisper, llms["chatml"], tmp_path / "model")
    convert.main(["to-torch", "llama", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "llm")])
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "llm" / name).read_text())["eos_token_id"] == [2, 0]
    assert "bos_token_id" not in json.loads((tmp_path / "llm" / "config.json").read_text())
    again = build(whisper, tmp_path / "llm", tmp_path / "again")
    assert again == from_dict(ModelConfig, model_directory.read_config_json(tmp_path / "model")["model"])
