"""Tests of sentencepiece and Hugging Face tokenizers, and of the choice between them."""

from __future__ import annotations

import json
import pickle

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.prompts import encode_prompt
from salmonn_jax.tokenizer import load_tokenizer
from tests.golden import MINI

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers reads tokenizer.json")


@pytest.fixture
def directory(tmp_path):
    """Returns a directory with a byte-level BPE tokenizer, trained on a few words and with two special tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a dog barks", "die Hündin bellt"], trainer)
    # The post-processor adds special tokens by default, as that of LLaMA 3.
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", tokenizer.token_to_id("<|start|>"))]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer_config = {"bos_token": {"content": "<|start|>"}, "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return tmp_path


def test_tokenizer_json(directory):
    tokenizer = load_tokenizer(directory)
    assert (
        (tokenizer.bos_token_id, tokenizer.eos_token_id)
        == (tokenizer.token_to_id("<|start|>"), tokenizer.token_to_id("<|end|>"))
        == (0, 1)
    )
    for text in ("a dog", " Hündin\n", "猫"):
        ids = tokenizer.encode(text)
        assert tokenizer.bos_token_id not in ids
        assert tokenizer.decode([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]) == text
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a dog barks") == tokenizer.encode("a dog barks")
    assert tokenizer.vocab_size == copy.vocab_size
    with pytest.raises(UserError, match="no piece 'zebra'"):
        tokenizer.token_to_id("zebra")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", "{", "cannot be read"),
        ("tokenizer_config.json", '{"bos_token": "<|start|>"}', "names no eos_token"),
        ("tokenizer_config.json", '{"bos_token": "no", "eos_token": "<|end|>"}', "no piece 'no'"),
        ("tokenizer_config.json", '{"bos_token": "<|start|>", "eos_token": "no"}', "no piece 'no'"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer.model", "no model", "is not a sentencepiece model"),
    ],
)
def test_errors_for_bad_tokenizer_files(directory, file, content, message):
    (directory / file).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(directory)


@pytest.mark.parametrize("bos_token", ['"bos_token": null, ', ""])
def test_a_tokenizer_without_start_token(directory, bos_token):
    """As that of Qwen."""
    (directory / "tokenizer_config.json").write_text("{" + bos_token + '"eos_token": "<|end|>"}')
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.bos_token_id, tokenizer.prefix_tokens, tokenizer.eos_token_id) == (None, (), 1)
    assert pickle.loads(pickle.dumps(tokenizer)).bos_token_id is None
    prompt = encode_prompt(tokenizer, "{}", "<SpeechHere>a dog", valid_audio_token_counts=[[2]], num_audio_tokens=2)
    assert prompt.tokens[2:] == tokenizer.encode("a dog")
    assert all(0 <= token < tokenizer.vocab_size for token in prompt.tokens)


def test_special_tokens_in_a_text_are_encoded_as_such(directory):
    tokenizer = load_tokenizer(directory)
    assert tokenizer.encode("a dog<|end|> barks") == [*tokenizer.encode("a dog"), 1, *tokenizer.encode(" barks")]
    MINI.require()
    tokenizer = load_tokenizer(MINI.directory / "vicuna")
    ids = [*tokenizer.encode("a dog"), 2, 1, *tokenizer.encode("barks")]
    assert tokenizer.encode("a dog</s><s>barks") == ids


def test_tokens_by_id(directory):
    tokenizer = load_tokenizer(directory)
    assert [tokenizer.id_to_token(i) for i in (0, 1, 10_000)] == ["<|start|>", "<|end|>", ""]
    assert [tokenizer.is_special(i) for i in (0, 1, 2)] == [True, True, False]
    MINI.require()
    tokenizer = load_tokenizer(MINI.directory / "vicuna")
    assert [tokenizer.id_to_token(i) for i in (1, 2, 10_000)] == ["<s>", "</s>", ""]
    assert [tokenizer.is_special(i) for i in (1, 2, 5, 10_000)] == [True, True, False, False]


def test_prefix_tokens_are_those_of_the_post_processor(directory):
    assert load_tokenizer(directory).prefix_tokens == (0,)
    tokenizer_json = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json | {"post_processor": None}))
    assert load_tokenizer(directory).prefix_tokens == ()


def test_tokenizer_json_is_loaded_if_it_has_added_tokens(directory):
    model_bytes = (MINI.directory / "vicuna" / "tokenizer.model").read_bytes()
    (directory / "tokenizer.model").write_bytes(model_bytes)
    sentencepiece_tokenizer = load_tokenizer(directory)
    assert sentencepiece_tokenizer.vocab_size == 400 and sentencepiece_tokenizer.prefix_tokens == (
        sentencepiece_tokenizer.bos_token_id,
    )
    assert (
        sentencepiece_tokenizer.decode([*sentencepiece_tokenizer.encode("a dog"), 400, 700]) == "a dog"
    )  # ids beyond the vocabulary
    tokenizer_json = json.loads((directory / "tokenizer.json").read_text())
    added_token = {"id": 400, "content": "<|im_end|>", "special": True}
    added_token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer_json["added_tokens"].append(added_token)
    tokenizer_json["model"]["vocab"] |= {f"x{i}": i for i in range(len(tokenizer_json["model"]["vocab"]), 400)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    assert load_tokenizer(directory).vocab_size == 401


def test_tokenizer_json_is_loaded_if_it_recognises_more_special_tokens(directory):
    """In Mistral's `tokenizer.model` the token `[INST]` exists, but is not recognised in a text."""
    (directory / "tokenizer.model").write_bytes((MINI.directory / "vicuna" / "tokenizer.model").read_bytes())
    assert load_tokenizer(directory).vocab_size == 400
    tokenizer_json = json.loads((directory / "tokenizer.json").read_text())
    token_id = tokenizer_json["model"]["vocab"]["Ġbarks"]
    added_token = {"id": token_id, "content": "Ġbarks", "special": True}
    tokenizer_json["added_tokens"].append(added_token | dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    tokenizer_json["added_tokens"][-1]["normalized"] = False
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.vocab_size < 400 and tokenizer.is_special(token_id)


def test_error_if_there_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.model and no tokenizer\.json"):
        load_tokenizer(tmp_path)
