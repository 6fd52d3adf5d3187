"""Metrics of open answers that count words: diversity, keyword accuracy, and the following rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from salmonn_jax.errors import import_optional
from salmonn_jax.evaluation.metrics.base import Measurement, Metric, mean, proportion
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.text.following import Predicate
from salmonn_jax.evaluation.text.normalizers import normalize_plain
from salmonn_jax.evaluation.text.parsers import KEYWORD_RULES, parse_keywords

NUM_KEYWORDS = 3


def diversity() -> Metric:
    """Returns the mean number of different words of an answer, after the normaliser "plain" (arXiv 2310.13289, 4.2)."""

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        return mean(range(len(predictions)), [len(set(normalize_plain(p.prediction).split())) for p in predictions])

    settings = {"normalizer": "plain"}
    return Metric("diversity", "different words per answer, higher is better", measure, "points", settings)


def keyword_accuracy() -> Metric:
    """Returns the share of the first three keywords of an answer that are among the keywords of the references.

    Keywords are compared after Porter's stemming. Fewer than three keywords leave the missing ones wrong, unless the
    references have fewer. References without a keyword cannot be scored.
    """

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        stem = _stemmer()
        scored, values, unparseable = [], [], []
        for index, prediction in enumerate(predictions):
            gold = {stem(keyword) for text in prediction.references for keyword in parse_keywords(text)}
            if not gold:
                continue
            answered = {stem(keyword) for keyword in parse_keywords(prediction.prediction)[:NUM_KEYWORDS]}
            scored.append(index)
            values.append(len(answered & gold) / min(NUM_KEYWORDS, len(gold)))
            if not answered:
                unparseable.append(index)
        return mean(scored, values, unparseable=tuple(unparseable))

    settings = {"normalizer": "plain", "parser": KEYWORD_RULES, "stemmer": "Porter (nltk)"}
    title = "correct keywords among the first three, higher is better"
    return Metric("accuracy", title, measure, settings=settings, packages=("nltk",))


def following_rate(predicate: Predicate) -> Metric:
    """Returns the share of answers that follow the form of their instruction.

    Args:
      predicate: rule that decides it (see `salmonn_jax.evaluation.text.following`).
    """

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        return proportion(range(len(predictions)), [predicate.holds(p) for p in predictions])

    title = f"following rate: the answer {predicate.description}; higher is better"
    return Metric("following_rate", title, measure, settings={"predicate": predicate.name})


def _stemmer() -> Callable[[str], str]:
    """Returns a function that stems each word of a normalised text."""
    stemmer = import_optional("nltk.stem.porter", "score").PorterStemmer()
    return lambda text: " ".join(map(stemmer.stem, text.split()))
