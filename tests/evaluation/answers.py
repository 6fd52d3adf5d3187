"""Predictions for tests of what is made of them."""

from __future__ import annotations

from salmonn_jax.evaluation.predictions import Prediction


def make_prediction(
    task: str, reference: str, prediction: str, *, id: str = "a", split: str = "test", condition: str = "audio"
):
    """A prediction of which only what tests look at is given."""
    return Prediction(
        key=f"{task} {split} {id} {condition}",
        id=id,
        task=task,
        source="mini",
        split=split,
        condition=condition,
        prompt="<Speech><SpeechHere></Speech> What makes this sound?",
        reference=reference,
        prediction=prediction,
        finish_reason="end",
        audio_seconds=1.0,
    )
