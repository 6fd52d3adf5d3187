"""Tests of `trainable`: modules by name, regular expressions, and what is reported and refused."""

from __future__ import annotations

import dataclasses

import pytest

from salmonn_jax.configs import get_preset
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import MODULES, describe_trainable, trainable_modules, trainable_paths

MODEL = get_preset("debug").model
SHAPES = parameters.model_structure(MODEL).shapes
WITHOUT_BEATS = parameters.model_structure(dataclasses.replace(MODEL, beats=None)).shapes
LLM_ONLY = parameters.model_structure(dataclasses.replace(MODEL, whisper=None, beats=None, qformer=None)).shapes


def test_every_parameter_belongs_to_one_module():
    selected = [path for paths in trainable_modules(SHAPES, MODULES).values() for path in paths]
    assert sorted(selected) == sorted(SHAPES)


def test_modules_and_regular_expressions():
    selected = trainable_modules(SHAPES, ["norms", "llama/.*q_proj/lora_[ab]"])
    assert selected["norms"] == [path for path in SHAPES if path.startswith(("ln_speech/", "ln_audio/"))]
    assert selected["llama/.*q_proj/lora_[ab]"] == ["llama/layers/q_proj/lora_a", "llama/layers/q_proj/lora_b"]


def test_a_module_that_the_model_does_not_have_is_reported():
    default = get_preset("debug").recipe.trainable
    assert not any(path.startswith("ln_audio/") for path in trainable_paths(WITHOUT_BEATS, default))
    line = describe_trainable(WITHOUT_BEATS, ("query_tokens", "norms", "beats"))
    total = sum(shape.size for shape in WITHOUT_BEATS.values())
    assert line == f"trained: query_tokens 16, norms 32; the model has {total:,} parameters and no beats"


@pytest.mark.parametrize(
    ("shapes", "trainable", "says"),
    [
        (SHAPES, ("qfromer",), "unknown module in trainable 'qfromer'; did you mean 'qformer'?"),
        (SHAPES, ("qformer/nothing",), "trainable entry 'qformer/nothing' matches no parameter of the model, such as "),
        (SHAPES, ("qformer/(",), "trainable entry 'qformer/(' is not a regular expression: "),
        (SHAPES, (), "trainable=[] selects no parameter of this model"),
        (WITHOUT_BEATS, ("beats",), "trainable=['beats'] selects no parameter of this model"),
        (LLM_ONLY, ("qformer", "projection"), "selects no parameter of this model"),
    ],
)
def test_wrong_entries_and_nothing_trained_are_refused(shapes, trainable, says):
    with pytest.raises(UserError) as caught:
        trainable_paths(shapes, trainable)
    assert says in str(caught.value) and "\n" not in str(caught.value)
