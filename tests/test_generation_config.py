"""Validation of the decoding settings."""

from __future__ import annotations

import pytest

from salmonn_jax.config import GenerationConfig, from_dict
from salmonn_jax.errors import UserError


def test_the_defaults_are_those_of_the_papers_evaluation():
    config = GenerationConfig()
    assert (config.num_beams, config.max_new_tokens, config.min_length, config.do_sample) == (4, 200, 1, False)
    assert (config.length_penalty, config.repetition_penalty, config.compat) == (1.0, 1.0, "hf4.28")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"num_beams": 2.5}, "num_beams=2.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"early_stopping": "x"}, "early_stopping"),
        ({"temperature": 0.0, "do_sample": True, "num_beams": 1}, "temperature=0.0"),
        ({"temperature": 1e-50, "do_sample": True, "num_beams": 1}, "temperature=1e-50: must be greater than or equal"),
        ({"temperature": 1e300, "do_sample": True, "num_beams": 1}, "temperature=1e+300: must be less than or equal"),
        ({"top_p": 0.0, "do_sample": True, "num_beams": 1}, "top_p=0.0"),
        ({"length_penalty": 300.0}, "length_penalty=300.0: must be less than or equal to 8"),
        ({"repetition_penalty": 1e300}, "repetition_penalty=1e+300: must be less than or equal to 1000"),
        ({"lora_multiplier": 1e300}, "lora_multiplier=1e+300: must be greater than or equal to 0 and less"),
        ({"top_p": 1.5, "do_sample": True, "num_beams": 1}, "top_p=1.5"),
        ({"top_p": 0.5}, "top_p=0.5: applies only with do_sample=true"),
        ({"seed": 3}, "seed=3: applies only with do_sample=true"),
        ({"do_sample": True}, "num_beams=4: must be 1 with do_sample=true"),
        ({"length_penalty": 2.0, "num_beams": 1}, "length_penalty=2.0: applies only with num_beams above 1"),
        ({"early_stopping": True, "num_beams": 1}, "early_stopping=True: applies only with num_beams above 1"),
        ({"min_length": 30, "max_new_tokens": 20}, "min_length=30: must be at most max_new_tokens=20"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"lora_multiplier": -1.0}, "lora_multiplier=-1.0"),
        ({"lora_multiplier": [1.0, -1.0]}, "lora_multiplier=[1.0, -1.0]: must be greater"),
        ({"lora_multiplier": []}, "lora_multiplier=[]: must be a number, or a list with a number of each layer"),
        ({"lora_multiplier": "x"}, 'lora_multiplier="x": must be a number'),
        ({"lora_gate": "text"}, 'lora_gate="text": must be'),
        ({"compat": "hf4"}, "compat"),
        ({"beams": 4}, "beams"),
    ],
)
def test_wrong_settings_are_one_line(values, message):
    with pytest.raises(UserError) as error:
        from_dict(GenerationConfig, values)
    assert message in str(error.value) and "\n" not in str(error.value)
