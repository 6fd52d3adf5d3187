"""Factory of predictions for the tests of scores and of the report."""

from __future__ import annotations

from collections.abc import Sequence

from salmonn_jax.evaluation.predictions import Prediction


def make_prediction(
    task: str,
    reference: str | Sequence[str],
    prediction: str,
    *,
    id: str = "a",
    split: str = "test",
    condition: str = "audio",
    **fields: object,
):
    """Returns a prediction. Fields that no test looks at have fixed values."""
    fixed = {
        "source": "mini",
        "prompt": "<Speech><SpeechHere></Speech> What makes this sound?",
        "finish_reason": "error" if fields.get("error") else "stop",
        "audio_seconds": 1.0,
        "too_long": "error",
        "windows": [[0.0, 1.0]],
    }
    return Prediction(
        key=f"{task} {split} {id} {condition}",
        id=id,
        task=task,
        split=split,
        condition=condition,
        references=[reference] if isinstance(reference, str) else reference,
        prediction=prediction,
        **(fixed | fields),
    )


def make_pairs(task: str, references: Sequence[str], predictions: Sequence[str], **fields: object):
    """Returns a prediction for each pair of a reference and an answer."""
    pairs = enumerate(zip(references, predictions, strict=True))
    return [make_prediction(task, r, p, id=f"{number:04}", **fields) for number, (r, p) in pairs]
