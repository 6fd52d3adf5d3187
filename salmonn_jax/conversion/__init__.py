"""Conversion between PyTorch checkpoints and model directories, in both directions.

`mapping` and `tables` pair the tensors of a checkpoint with parameters, `to_jax` and `to_torch` convert. The packages:
`formats` reads and writes the files of PyTorch models, `settings` chooses what the tensors do not determine, and
`comparison` runs PyTorch and JAX on the same clip.

No other package of the library imports torch. This one imports it only when a function needs it.
"""
