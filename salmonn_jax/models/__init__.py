"""Models: arrays in, arrays out. Encoders have a folder each, with their configuration and their module.

`salmonn_jax.config` imports the configurations of the encoders from their folders, so it is imported first.
"""

import salmonn_jax.config  # noqa: F401
