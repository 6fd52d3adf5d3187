"""Decoding as transformers 4.28 does in the original: ids and scores of every setting that a golden set stores.

Other golden sets of the same format are tried too: directories in SALMONN_GOLDEN, separated by colons.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from salmonn_jax.config import GenerationConfig
from tests import golden
from tests.decoding.prompts import Answer, decode_prompts, golden_prompts, take_rows
from tests.golden import MINI, TINY, GoldenSet

LORA_ALPHA = 32
SETTINGS = tuple(MINI.expected_json["generations"])
LIMITS = (20, 40)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(MINI, id="mini"),
        pytest.param(TINY, id="tiny", marks=pytest.mark.slow),
        *(pytest.param(other, id=other.directory.name) for other in golden.other_sets()),
    ],
)
def golden_set(request) -> GoldenSet:
    request.param.require()
    return request.param


@dataclasses.dataclass(frozen=True)
class Stored:
    """Settings of a stored generation, and what the original generates from each clip alone."""

    config: GenerationConfig
    ids: list[list[int]]  # without the start token that transformers puts first
    scores: list[float | None]  # of beam searches


def stored(golden_set: GoldenSet, name: str, limit: int) -> Stored:
    """Returns a stored generation; skips the test if the set does not store it."""
    expected = golden_set.expected_json
    if "generations" in expected:
        if name not in expected["generations"]:
            pytest.skip(f"the set stores no {name}")
        answers, settings = (
            expected["generations"][name][f"max_new_tokens_{limit}"],
            expected["generations"][name]["settings"],
        )
    else:
        if f"generate_{name}" not in expected or limit != max(LIMITS):
            pytest.skip(f"the set stores no {name} with {limit} tokens")
        answers, settings = expected[f"generate_{name}"], {"num_beams": 4 if name == "beam4" else 1}
        limit = max(len(answer["ids"]) - 1 for answer in answers)
    settings = {key: value for key, value in settings.items() if key != "lora_alpha"} | {
        "lora_multiplier": settings.get("lora_alpha", LORA_ALPHA) / LORA_ALPHA
    }
    config = GenerationConfig(**settings, max_new_tokens=limit)
    return Stored(config, [answer["ids"][1:] for answer in answers], [answer.get("score") for answer in answers])


def decode(golden_set: GoldenSet, config: GenerationConfig, rows: list[int]) -> list[Answer]:
    return decode_prompts(
        golden_set.model_with_pad.llama,
        take_rows(golden_prompts(golden_set), rows),
        config,
        lora_scale=golden_set.config.lora.scale,
        pad_classes=golden_set.pad_classes,
    )


def assert_equal(golden_set: GoldenSet, answers: list[Answer], expected: Stored, rows: list[int]) -> None:
    for answer, clip in zip(answers, rows, strict=True):
        assert answer.ids == expected.ids[clip]
        if expected.scores[clip] is not None and golden_set.stores_pad:
            assert answer.score == pytest.approx(expected.scores[clip], rel=1e-4)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_of_unequal_prompts(golden_set, name, limit):
    expected = stored(golden_set, name, limit)
    assert_equal(golden_set, decode(golden_set, expected.config, [0, 1, 2]), expected, [0, 1, 2])


@pytest.mark.parametrize("limit", [20, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_each_clip_alone(golden_set, name, limit):
    expected = stored(golden_set, name, limit)
    for clip in range(golden.NUM_CLIPS):
        assert_equal(golden_set, decode(golden_set, expected.config, [clip]), expected, [clip])


def test_neighbours_and_order_change_nothing(golden_set):
    """The same prompt is in several rows, among others and in another order."""
    expected, rows = stored(golden_set, "beam4", 40), [2, 0, 0, 1, 2, 1, 0, 1]
    answers = decode(golden_set, expected.config, rows)
    assert_equal(golden_set, answers, expected, rows)
    np.testing.assert_array_equal(answers[1].score, answers[2].score)
