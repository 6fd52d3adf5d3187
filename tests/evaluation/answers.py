"""Factory of predictions for the tests of the score table and of the report."""

from __future__ import annotations

from salmonn_jax.evaluation.predictions import Prediction


def make_prediction(
    task: str, reference: str, prediction: str, *, id: str = "a", split: str = "test", condition: str = "audio"
):
    """Returns a prediction. Fields that no test looks at have fixed values."""
    return Prediction(
        key=f"{task} {split} {id} {condition}",
        id=id,
        task=task,
        source="mini",
        split=split,
        condition=condition,
        prompt="<Speech><SpeechHere></Speech> What makes this sound?",
        references=[reference],
        prediction=prediction,
        finish_reason="stop",
        audio_seconds=1.0,
        too_long="error",
        windows=[[0.0, 1.0]],
    )
