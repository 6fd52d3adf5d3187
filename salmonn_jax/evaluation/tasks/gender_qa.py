"""Questions about the gender of a speaker."""

from __future__ import annotations

from salmonn_jax.evaluation.protocol import Task
from salmonn_jax.evaluation.tasks.gender_recognition import GENDER
from salmonn_jax.evaluation.tasks.qa import QUESTION

TASK = Task("gender_QA", "Question about the gender of a speaker", (GENDER, QUESTION))
