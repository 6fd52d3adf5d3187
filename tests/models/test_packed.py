"""Tests that packed examples do not affect each other: losses equal those of examples in rows of their own."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from salmonn_jax.batch import Segment, collate
from salmonn_jax.configs import get_preset
from salmonn_jax.models import parameters
from salmonn_jax.models.salmonn import answer_losses

MODEL = get_preset("debug").model


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.slow), {"attention_bias": "qkv", "qk_norm": True}],
    ids=["llama", "biases and norms"],
)
def test_losses_of_packed_and_separate_rows_are_equal(changes):
    config = dataclasses.replace(MODEL, llama=dataclasses.replace(MODEL.llama, **changes))
    rng, num_audio_tokens = np.random.default_rng(0), MODEL.num_audio_tokens

    def example(prompt_length: int, answer_length: int, num_windows: int) -> Segment:
        audio_slots = list(range(num_windows * num_audio_tokens))
        slots = [-1] * 2 + audio_slots + [-1] * (prompt_length + answer_length)
        clips = tuple(
            rng.integers(-9000, 9000, MODEL.audio.window_samples).astype(np.int16) for _ in range(num_windows)
        )
        return Segment(rng.integers(3, 60, len(slots)).tolist(), slots, len(slots) - answer_length, clips)

    examples = [example(4, 5, 1), example(6, 3, 0), example(2, 7, 2), example(3, 4, 1)]
    sizes = {"seq_len": 128, "window_samples": MODEL.audio.window_samples, "num_audio_tokens": num_audio_tokens}
    separate = collate([[example_segment] for example_segment in examples], **sizes)
    packed = collate([examples[:3], examples[3:]], **sizes, num_clips=6)  # two clip slots stay empty
    initial = parameters.init_params(config, 1)
    params = {path: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype) for path, x in initial.items()}
    model = parameters.model_structure(config).merge(params)

    @jax.jit
    def losses(batch):
        return answer_losses(model(batch, lora_scale=2.0)[0], batch)

    (packed_losses, packed_mask), (separate_losses, separate_mask) = losses(packed), losses(separate)
    assert packed_mask.sum() == separate_mask.sum() == 5 + 3 + 7 + 4
    np.testing.assert_allclose(packed_losses[packed_mask], separate_losses[separate_mask], rtol=1e-5)
