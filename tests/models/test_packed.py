"""Packed examples do not see each other: each token's loss is what it is in a row of its own."""

from __future__ import annotations

import jax
import numpy as np

from salmonn_jax.batch import Segment, collate
from salmonn_jax.configs import get_config
from salmonn_jax.models import parameters
from salmonn_jax.models.salmonn import answer_losses

MODEL = get_config("debug").model


def test_packed_losses_are_those_of_rows_of_their_own():
    random, tokens = np.random.default_rng(0), MODEL.num_audio_tokens

    def example(prompt: int, answer: int, windows: int) -> Segment:
        heard = list(range(windows * tokens))
        slots = [-1] * 2 + heard + [-1] * (prompt + answer)
        clips = tuple(random.integers(-9000, 9000, MODEL.audio.window_samples).astype(np.int16) for _ in range(windows))
        return Segment(random.integers(3, 60, len(slots)).tolist(), slots, len(slots) - answer, clips)

    examples = [example(4, 5, 1), example(6, 3, 0), example(2, 7, 2), example(3, 4, 1)]
    sizes = {"seq_len": 128, "window_samples": MODEL.audio.window_samples, "num_audio_tokens": tokens}
    alone = collate([[one] for one in examples], **sizes)
    packed = collate([examples[:3], examples[3:]], **sizes, num_clips=6)  # with slots that nobody uses
    model = parameters.model_structure(MODEL).merge(parameters.init_params(MODEL, 1))

    @jax.jit
    def losses(batch):
        return answer_losses(model(batch, lora_scale=2.0)[0], batch)

    (ours, our_places), (theirs, their_places) = losses(packed), losses(alone)
    assert our_places.sum() == their_places.sum() == 5 + 3 + 7 + 4
    np.testing.assert_allclose(ours[our_places], theirs[their_places], rtol=1e-5)
