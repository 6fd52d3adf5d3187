"""Tests of the decoder with tied embeddings, which the golden outputs do not cover."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from salmonn_jax.configs import get_preset
from salmonn_jax.models import parameters

MODEL = get_preset("debug").model
TIED = dataclasses.replace(MODEL, llama=dataclasses.replace(MODEL.llama, tie_word_embeddings=True))


def test_tied_embeddings_share_one_table():
    tied, untied = parameters.init_params(TIED, 0), parameters.init_params(MODEL, 0)
    assert set(untied) - set(tied) == {"llama/lm_head/kernel"}
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, MODEL.llama.hidden_size)), jnp.float32)
    untied_params = tied | {"llama/lm_head/kernel": tied["llama/embedding"].T}
    tied_logits = parameters.model_structure(TIED).merge(tied).llama.logits(hidden)
    untied_logits = parameters.model_structure(MODEL).merge(untied_params).llama.logits(hidden)
    np.testing.assert_array_equal(tied_logits, untied_logits)
