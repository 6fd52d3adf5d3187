"""Merging of models that were trained from the same base: methods, recipes, audit, adapters."""
