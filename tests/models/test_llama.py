"""What the golden set does not show of the decoder: embeddings that are tied to the output."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from salmonn_jax.configs import get_config
from salmonn_jax.models import parameters

MODEL = get_config("debug").model
TIED = dataclasses.replace(MODEL, llama=dataclasses.replace(MODEL.llama, tie_word_embeddings=True))


def test_tied_embeddings_are_one_table():
    tied, untied = parameters.init_params(TIED, 0), parameters.init_params(MODEL, 0)
    assert set(untied) - set(tied) == {"llama/lm_head/kernel"}
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, MODEL.llama.hidden_size)), jnp.float32)
    as_untied = tied | {"llama/lm_head/kernel": tied["llama/embedding"].T}
    ours = parameters.model_structure(TIED).merge(tied).llama.logits(hidden)
    theirs = parameters.model_structure(MODEL).merge(as_untied).llama.logits(hidden)
    np.testing.assert_array_equal(ours, theirs)
