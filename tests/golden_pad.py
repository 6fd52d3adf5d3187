"""Finds the [PAD] embedding of the golden set: python -m tests.golden_pad (some minutes).

The original adds a [PAD] token with a random embedding that is in no checkpoint. In a batch, the first answer token of
a row with a shorter prompt is predicted from it, so the stored loss and gradients of the batch depend on it. They also
determine it: 5,217 stored numbers for 64 unknown ones, solved by Levenberg-Marquardt in float64. What it finds is kept
in `golden_pad.json`; that loss and gradients then agree in all the other dimensions is what the test checks.
"""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

from salmonn_jax.config import RunConfig
from salmonn_jax.models.parameters import trainable_paths
from tests import golden


def main() -> None:
    params = golden.params_with_pad()
    frames = golden.encode_clips(np.full(3, golden.clips()[1].max(), np.int32))
    jax.config.update("jax_enable_x64", True)
    params, frames = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.float64), (params, frames))
    chosen = trainable_paths(params, RunConfig(name="golden").trainable)
    trainable = {path: value for path, value in params.items() if path in chosen}
    frozen = {path: value for path, value in params.items() if path not in chosen}
    goal, _ = ravel_pytree(golden.expected_gradients())

    def residual(pad):
        (loss, _), gradient = jax.value_and_grad(golden.batch_loss, has_aux=True)(trainable, frozen, frames, pad)
        gradients, _ = ravel_pytree(golden.to_original_gradients(gradient))
        # Weighed by how well they are known: the loss is one number, and stored to 1e-7.
        return jnp.append(gradients - goal, 100 * (loss - golden.expected()["batch_loss"]))

    value, slope = jax.jit(residual), jax.jit(jax.jacfwd(residual))
    # Starts as long as the other rows are; other starts end in local minima.
    pad = float(frozen["llama/embedding"].std()) * np.random.default_rng(1).standard_normal(
        golden.CONFIG.llama.hidden_size
    )
    for _ in range(8):
        found = scipy.optimize.least_squares(value, pad, slope, method="lm", max_nfev=60, xtol=1e-14, ftol=1e-14)
        pad = found.x
        print(f"residual norm {np.sqrt(2 * found.cost):.2e} of {np.linalg.norm(goal):.2f}", flush=True)
        pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(pad.tolist()) + "\n")
        if found.status > 0:
            break


if __name__ == "__main__":
    main()
