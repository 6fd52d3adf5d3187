"""Comparison of a converted model with PyTorch, layer by layer."""
