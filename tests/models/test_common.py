"""Layers that all models share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax.models.common import cast_broadcast, matmul


def test_gradients_of_weights_are_summed_in_float32():
    """Activations are bfloat16. The sum of many tokens must not be rounded to bfloat16, nor summed in it."""
    rng = np.random.default_rng(0)
    x, y_gradient = (jnp.asarray(rng.normal(size=(3, 500, n)), jnp.bfloat16) for n in (8, 5))
    kernel, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 5), (5,)))

    def layer(kernel, bias, x):
        y = matmul(x, kernel)
        return y + cast_broadcast(bias, y)

    y, gradient = jax.vjp(layer, kernel, bias, x)
    assert y.dtype == jnp.bfloat16
    for actual, expected in zip(
        gradient(y_gradient)[:2],
        (np.einsum("abi,abo->io", *(np.float64(a) for a in (x, y_gradient))), np.float64(y_gradient).sum((0, 1))),
        strict=True,
    ):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)  # bfloat16 is wrong by 4e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_is_the_product_in_the_dtype_of_the_activations(dtype):
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(2, 3, 8)), dtype), jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    (y, gradient), (expected, expected_gradient) = (
        jax.vjp(lambda x, f=f: f(x, kernel), x) for f in (matmul, lambda x, kernel: x @ kernel.astype(x.dtype))
    )
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(gradient(y)[0], expected_gradient(y)[0], rtol=1e-6)
