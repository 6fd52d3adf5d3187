"""Measures of forgetting, from the predictions of several stages. Nothing here needs JAX."""
