"""Both kinds of tokenizer behind one interface."""

from __future__ import annotations

import json
import pickle

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import load_tokenizer
from tests import golden

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers reads tokenizer.json")


@pytest.fixture
def directory(tmp_path):
    """A byte-level BPE with two special tokens, trained on a few words."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["a dog barks", "die Hündin bellt"], trainer)
    # A tokenizer that would add special tokens of its own accord, as LLaMA 3's does.
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", made.token_to_id("<|start|>"))]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    named = {"bos_token": {"content": "<|start|>"}, "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
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
    ("file", "content", "says"),
    [
        ("tokenizer_config.json", "{", "cannot be read"),
        ("tokenizer_config.json", '{"eos_token": "<|end|>"}', "names no bos_token"),
        ("tokenizer_config.json", '{"bos_token": "<|start|>", "eos_token": "no"}', "no piece 'no'"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer.model", "no model", "is not a sentencepiece model"),
    ],
)
def test_what_is_wrong_is_told(directory, file, content, says):
    (directory / file).write_text(content)
    with pytest.raises(UserError, match=says):
        load_tokenizer(directory)


def test_a_text_begins_with_what_the_model_was_taught(directory):
    assert load_tokenizer(directory).prefix_tokens == (0,)
    definition = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": None}))
    assert load_tokenizer(directory).prefix_tokens == ()


def test_of_two_files_the_one_that_knows_the_added_tokens(directory):
    golden.require()
    model = (golden.GOLDEN_DIR / "vicuna" / "tokenizer.model").read_bytes()
    (directory / "tokenizer.model").write_bytes(model)
    plain = load_tokenizer(directory)
    assert plain.vocab_size == 640 and plain.prefix_tokens == (plain.bos_token_id,)
    assert plain.decode([*plain.encode("a dog"), 640, 700]) == "a dog"  # rows of a table that was made larger
    definition = json.loads((directory / "tokenizer.json").read_text())
    added = {"id": 640, "content": "<|im_end|>", "special": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    definition["added_tokens"].append(added)
    definition["model"]["vocab"] |= {f"x{i}": i for i in range(len(definition["model"]["vocab"]), 640)}
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    assert load_tokenizer(directory).vocab_size == 641


def test_none(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.model and no tokenizer\.json"):
        load_tokenizer(tmp_path)
