"""Options of the command line that several entry points share."""

from __future__ import annotations

import argparse

import pytest

from launch import cli
from salmonn_jax.config import GenerationConfig
from salmonn_jax.errors import UserError


def parse(*words: str) -> GenerationConfig:
    parser = argparse.ArgumentParser()
    cli.add_generation_options(parser)
    arguments = vars(parser.parse_args(words))
    config = cli.pop_generation_config(arguments)
    assert arguments == {}
    return config


def test_defaults_are_those_of_the_configuration():
    assert parse() == GenerationConfig()


def test_options_set_the_fields_of_their_names():
    words = ("--num-beams", "2", "--length-penalty", "0.5", "--early-stopping", "never", "--compat", "hf5")
    assert parse(*words) == GenerationConfig(num_beams=2, length_penalty=0.5, early_stopping="never", compat="hf5")
    assert parse("--num-beams", "1", "--do-sample", "--top-p", "0.9") == GenerationConfig(
        num_beams=1, do_sample=True, top_p=0.9
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num-beams", "0"), "num_beams=0: must be greater than 0"),
        (("--num-beams", "many"), 'num_beams="many": must be a valid integer'),
        (("--max-new-tokens", "2", "--min-length", "3"), "min_length=3: must be at most max_new_tokens=2"),
        (("--early-stopping", "maybe"), "early_stopping"),
        (("--do-sample",), "num_beams=4: must be 1 with do_sample=true"),
    ],
)
def test_wrong_values_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        parse(*words)
