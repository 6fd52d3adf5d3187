"""Metrics. A task lists those it needs; a manifest may name one of `metric_names()` for a task of its own.

Each metric turns predictions into statistics per clip, of which `salmonn_jax.evaluation.scoring` makes a value, an
interval and a comparison of two runs.
"""

from __future__ import annotations

from collections.abc import Callable

from salmonn_jax.errors import unknown_name
from salmonn_jax.evaluation.metrics.answers import accuracy, contains_accuracy, yes_no_accuracy
from salmonn_jax.evaluation.metrics.base import Metric
from salmonn_jax.evaluation.metrics.captions import cider, meteor, spice, spider
from salmonn_jax.evaluation.metrics.error_rates import cer, per, permutation_invariant_wer, wer
from salmonn_jax.evaluation.metrics.overlap import bleu, rouge_l
from salmonn_jax.evaluation.metrics.words import diversity, keyword_accuracy

_GENERIC: dict[str, Callable[[], Metric]] = {
    "wer": wer,
    "wer-whisper-english": lambda: wer("whisper-english"),
    "wer-whisper-basic": lambda: wer("whisper-basic"),
    "wer-open-asr": lambda: wer("open-asr"),
    "wer-open-asr-merged": lambda: wer("open-asr", merge_compounds=True),
    "cer": cer,
    "cer-chinese": lambda: cer("chinese"),
    "per": per,
    "pi-wer": lambda: permutation_invariant_wer("plain"),
    "accuracy": accuracy,
    "contains": contains_accuracy,
    "yes-no": yes_no_accuracy,
    "keywords": keyword_accuracy,
    "diversity": diversity,
    "bleu": bleu,
    **{f"bleu-{tokenizer}": lambda name=tokenizer: bleu(name) for tokenizer in ("13a", "zh", "char", "ja-mecab")},
    "rouge": rouge_l,
    "meteor": meteor,
    "cider": cider,
    "spice": spice,
    "spider": spider,
}


def get_metric(name: str) -> Metric:
    """Returns the generic metric with this name.

    Raises:
      UserError: the metric is unknown.
    """
    if name not in _GENERIC:
        raise unknown_name("metric", name, _GENERIC)
    return _GENERIC[name]()


def metric_names() -> list[str]:
    """Returns the names of the generic metrics."""
    return sorted(_GENERIC)
