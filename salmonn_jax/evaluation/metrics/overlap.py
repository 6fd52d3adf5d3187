"""BLEU with sacrebleu and ROUGE-L with rouge-score, over whole corpora."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from salmonn_jax.errors import import_optional
from salmonn_jax.evaluation.metrics.base import Measurement, Metric, NotComputed, mean
from salmonn_jax.evaluation.predictions import Prediction

ORDER = 4  # longest n-grams of BLEU
# Tokenizers of sacrebleu by language; "13a" for the others.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}


def bleu(tokenizer: str | None = None) -> Metric:
    """Returns corpus BLEU with 4-grams, mixed case, as sacrebleu computes it (Post, WMT 2018).

    Args:
      tokenizer: tokenizer of sacrebleu, such as "13a", "zh", "char" or "ja-mecab". None: that of the language of the
        predictions (see `TOKENIZERS`).
    """
    name = f"bleu_{tokenizer.partition('-')[0]}" if tokenizer == "char" else "bleu"

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        scored = [index for index, p in enumerate(predictions) if any(text.strip() for text in p.references)]
        chosen = tokenizer or _tokenizer_of_language(predictions)
        library = _bleu(chosen)
        if not scored:
            return Measurement(np.zeros(0, int), np.zeros((0, 2 + 2 * ORDER)), _bleu_value)
        hypotheses = [predictions[index].prediction for index in scored]
        references = [[text for text in predictions[index].references if text.strip()] for index in scored]
        rows = []
        for hypothesis, texts in zip(hypotheses, references, strict=True):
            score = library.corpus_score([hypothesis], [[text] for text in texts])
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        width = max(map(len, references))
        library.corpus_score(hypotheses, [[(*texts, *[None] * width)[k] for texts in references] for k in range(width)])
        details = {"signature": str(library.get_signature())}
        return Measurement(np.array(scored, int), np.array(rows, np.float64), _bleu_value, details=details)

    settings = {"tokenizer": tokenizer or "of the language"}
    title = f"BLEU over {'characters' if tokenizer == 'char' else 'words'}, higher is better"
    return Metric(name, title, measure, unit="points", settings=settings, packages=("sacrebleu",))


def rouge_l() -> Metric:
    """Returns the mean ROUGE-L F-score over clips, without stemming; the best reference of a clip counts.

    rouge-score keeps Latin letters and digits only, so references without any of them cannot be scored.
    """

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        tokenize, score = _rouge()
        scored = [index for index, p in enumerate(predictions) if any(map(tokenize, p.references))]
        values = [score(predictions[index].references, predictions[index].prediction) for index in scored]
        return mean(scored, values)

    settings = {"tokenizer": "rouge-score, no stemming"}
    return Metric("rouge_l", "ROUGE-L, higher is better", measure, settings=settings, packages=("rouge-score",))


@functools.cache
def _bleu(tokenizer: str) -> Any:
    """Returns sacrebleu's BLEU with a tokenizer."""
    metrics = import_optional("sacrebleu.metrics", "score")
    try:
        return metrics.BLEU(tokenize=tokenizer, max_ngram_order=ORDER)
    except (ImportError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise NotComputed(f"tokenizer {tokenizer}: {line}; pip install 'salmonn-jax[score]'") from None


def _bleu_value(sums: np.ndarray) -> float:
    """Returns the BLEU of summed counts, float64[2 + 2 * ORDER]."""
    compute = import_optional("sacrebleu.metrics", "score").BLEU.compute_bleu
    counts = [int(count) for count in sums]
    sys_len, ref_len, correct, total = *counts[:2], counts[2 : 2 + ORDER], counts[2 + ORDER :]
    return compute(correct, total, sys_len, ref_len, smooth_method="exp", max_ngram_order=ORDER).score


def _tokenizer_of_language(predictions: Sequence[Prediction]) -> str:
    """Returns the tokenizer of the language of some predictions. Raises NotComputed if they need several."""
    tokenizers = {TOKENIZERS.get(p.language.partition("-")[0], "13a") for p in predictions}
    if len(tokenizers) > 1:
        languages = ", ".join(sorted({p.language or "none" for p in predictions}))
        raise NotComputed(f"the languages {languages} need different tokenizers; give each a task of its own")
    return tokenizers.pop()


@functools.cache
def _rouge() -> tuple[Any, Any]:
    """Returns rouge-score's tokenizer and a function from references and a prediction to ROUGE-L."""
    scorer = import_optional("rouge_score.rouge_scorer", "score").RougeScorer(["rougeL"])
    score = lambda references, text: scorer.score_multi(references, text)["rougeL"].fmeasure  # noqa: E731
    return scorer._tokenizer.tokenize, score
