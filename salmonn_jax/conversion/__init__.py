"""Conversion between PyTorch checkpoints and model directories.

No other package of the library imports torch. This one imports it only when a function needs it.
"""
