"""Accuracy of closed and short answers. Unparseable answers are wrong and counted."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from salmonn_jax.evaluation.metrics.base import Measurement, Metric, proportion
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.text.normalizers import normalize_plain
from salmonn_jax.evaluation.text.parsers import (
    CHOICE_RULES,
    LABEL_RULES,
    YES_NO_RULES,
    parse_choice,
    parse_label,
    parse_yes_no,
)


def accuracy(*, extract: Callable[[str], str] = str, title: str = "correct answers, higher is better") -> Metric:
    """Returns the share of answers that equal a reference, after the normaliser "plain".

    A prediction with choices is parsed instead (see `parse_choice`). A reference without a word, or one that names none
    of the choices, cannot be scored.

    Args:
      extract: returns the part of a text that is compared.
      title: see `Metric`.
    """
    return _matching_accuracy(lambda answer, text: normalize_plain(answer) == text, "exact", title, extract)


def contains_accuracy() -> Metric:
    """Returns the share of answers that contain a reference as whole words, after the normaliser "plain".

    A reference in a script without spaces is looked for as characters. Choices and references that cannot be scored are
    those of `accuracy`.
    """
    return _matching_accuracy(contains, "contains@1", "answers that contain the reference, higher is better", str)


def _matching_accuracy(
    matches: Callable[[str, str], bool], rules: str, title: str, extract: Callable[[str], str]
) -> Metric:
    """Returns the share of answers that name the choice of a reference, or match a normalised reference."""

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        scored, correct, unparseable = [], [], []
        for index, prediction in enumerate(predictions):
            answer, references = extract(prediction.prediction), [extract(text) for text in prediction.references]
            if prediction.choices:
                choice = parse_choice(answer, prediction.choices)
                expected = {parse_choice(text, prediction.choices) for text in references} - {None}
                is_correct = choice in expected
            else:
                expected = {text for text in map(normalize_plain, references) if text}
                is_correct = any(matches(answer, text) for text in expected)
            if expected:
                scored.append(index)
                correct.append(is_correct)
                if prediction.choices and choice is None:
                    unparseable.append(index)
        return proportion(scored, correct, unparseable=tuple(unparseable))

    settings = {"normalizer": "plain", "parser": f"{rules}, or {CHOICE_RULES} where there are choices"}
    return Metric("accuracy", title, measure, settings=settings)


def contains(answer: str, reference: str) -> bool:
    """Returns whether an answer contains a normalised reference as whole words."""
    answer = normalize_plain(answer)
    if reference.isascii():
        return f" {reference} " in f" {answer} "
    return reference in answer


def yes_no_accuracy(name: str = "accuracy") -> Metric:
    """Returns the accuracy of yes/no answers (see `parse_yes_no`).

    Args:
      name: "accuracy", or "balanced_accuracy" for the mean over the answers yes and no.
    """
    parse = {True: "yes", False: "no", None: None}
    return _class_accuracy(name, lambda text: parse[parse_yes_no(text)], ("yes", "no"), YES_NO_RULES)


def label_accuracy(labels: Mapping[str, Sequence[str]], name: str = "accuracy") -> Metric:
    """Returns the accuracy of an answer with one label of a closed list (see `parse_label`).

    Args:
      labels: label -> its synonyms.
      name: "accuracy", or "balanced_accuracy" for the mean over labels, which is called unweighted accuracy in emotion
        recognition.
    """
    return _class_accuracy(name, lambda text: parse_label(text, labels), tuple(labels), LABEL_RULES)


def _class_accuracy(name: str, parse: Callable[[str], str | None], classes: Sequence[str], rules: str) -> Metric:
    """Returns the accuracy, or its mean over classes, with the confusion matrix in its details."""

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        scored, pairs = [], []
        for index, prediction in enumerate(predictions):
            expected = parse(prediction.references[0])
            if expected is not None:
                scored.append(index)
                pairs.append((expected, parse(prediction.prediction)))
        confusion: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for expected, answer in pairs:
            confusion[expected][answer or "unparseable"] += 1
        unparseable = tuple(index for index, (_, answer) in zip(scored, pairs, strict=True) if answer is None)
        fields = {"unparseable": unparseable, "details": {"confusion": {k: dict(v) for k, v in confusion.items()}}}
        if name == "accuracy":
            return proportion(scored, [expected == answer for expected, answer in pairs], **fields)
        statistics = np.zeros((len(pairs), 2 * len(classes)))
        for row, (expected, answer) in zip(statistics, pairs, strict=True):
            k = classes.index(expected)
            row[k], row[len(classes) + k] = expected == answer, 1.0
        return Measurement(np.array(scored, int), statistics, _mean_over_classes, **fields)

    title = "correct answers" if name == "accuracy" else "mean of the accuracies of the classes"
    return Metric(name, f"{title}, higher is better", measure, settings={"parser": rules})


def _mean_over_classes(sums: np.ndarray) -> float:
    """Returns the mean accuracy over the classes that have clips; `sums` are the correct ones, then the clips."""
    correct, count = np.split(sums, 2)
    return float(np.mean(correct[count > 0] / count[count > 0])) if count.any() else float("nan")
