"""Training data that a model generates itself: the rules by which its answers are kept. It needs no JAX."""

from salmonn_jax.self_generated.rules import AnswerRules, Rejection, sort_answers

__all__ = ["AnswerRules", "Rejection", "sort_answers"]
