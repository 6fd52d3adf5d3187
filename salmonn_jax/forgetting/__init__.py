"""Remedies against catastrophic forgetting, and their measurement."""
